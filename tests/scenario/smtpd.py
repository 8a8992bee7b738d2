"""A mail server on a port of 127.0.0.1 that keeps what it gets, a JSON object a line, in DIR/mails; what it is told of credentials, in
DIR/credentials.

usage: smtpd.py DIR PORT MODE, with cert.pem and key.pem in DIR
MODE: submission (STARTTLS, and a password), submissions (TLS at once, and a password), relay (takes mail from anybody, and has STARTTLS),
      clear (asks for a password without TLS)
"""

import json
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

directory, port, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{directory}/cert.pem", f"{directory}/key.pem")


def keep(name, what):
    with open(f"{directory}/{name}", "a") as file:
        file.write(json.dumps(what) + "\n")


class Handler:
    async def handle_DATA(self, server, session, envelope):
        text = envelope.content.decode("utf-8", "surrogateescape")
        tls = session.ssl is not None or mode == "submissions"
        keep("mails", {"from": envelope.mail_from, "to": envelope.rcpt_tos, "text": text, "tls": tls})
        return "250 OK"


def authenticate(server, session, envelope, mechanism, data):
    assert isinstance(data, LoginPassword)
    keep("credentials", [data.login.decode(), data.password.decode()])
    return AuthResult(success=(data.login, data.password) == (b"ops@example.com", b"mail-s3cret"), handled=False)


options = {"hostname": "127.0.0.1", "port": port}
if mode == "submissions":
    options["ssl_context"] = context
if mode in ("submission", "relay"):
    options["tls_context"] = context
if mode != "relay":
    options |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": mode == "submission"}
if mode == "submission":
    options["require_starttls"] = True
Controller(Handler(), **options).start()
threading.Event().wait()
