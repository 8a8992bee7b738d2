"""acme2certifier over TLS on a port of 127.0.0.1: the server that comes with it takes port 80 of every address.

usage: certifier.py DIR PORT, with acme.cfg, cert.pem and key.pem in DIR
"""

import os
import socketserver
import ssl
import sys
from wsgiref.simple_server import WSGIServer, make_server

directory, port = sys.argv[1], int(sys.argv[2])
os.environ["ACME_SRV_CONFIGFILE"] = os.path.join(directory, "acme.cfg")
# It is asked to believe every challenge, which it does for those only who say so twice.
os.environ["ACME2CERTIFIER_I_KNOW_THE_RISK"] = "true"

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
import datetime


def revocation_list():
    """Without one, every enrolment ends in a 500."""
    read = lambda name: open(os.path.join(directory, name), "rb").read()
    issuer = x509.load_pem_x509_certificate(read("issuing.pem"))
    key = serialization.load_pem_private_key(read("issuing.key"), None)
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateRevocationListBuilder().issuer_name(issuer.subject)
    revoked = builder.last_update(now).next_update(now + datetime.timedelta(days=30)).sign(key, hashes.SHA256())
    open(os.path.join(directory, "crl.pem"), "wb").write(revoked.public_bytes(serialization.Encoding.PEM))


revocation_list()
os.makedirs(os.path.join(directory, "certs"), exist_ok=True)

from acme2certifier.share import acme2certifier_wsgi


class Threads(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True


handler = acme2certifier_wsgi.get_handler_cls()
server = make_server("127.0.0.1", port, acme2certifier_wsgi.application, server_class=Threads, handler_class=handler)
server.base_environ["HTTPS"] = "on"
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(os.path.join(directory, "cert.pem"), os.path.join(directory, "key.pem"))
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
