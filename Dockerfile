# The image of Skep: one binary, the certificate authorities, borg and ssh for backups, a state directory.
#
#   docker build -t skep .
#   docker run -d -p 80:80 -p 443:443 -v skep:/var/lib/skep \
#     -v /var/run/docker.sock:/var/run/docker.sock --group-add "$(stat -c %g /var/run/docker.sock)" skep
#
# With `--cap-drop ALL` the binary wants `--cap-add NET_BIND_SERVICE` back, or the kernel refuses to start it.

FROM rust:1-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates cmake libcap2-bin \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The capability rides on the file, so that no root is needed for ports 80 and 443, on the host's network too. BuildKit
# keeps it through the COPY below. The classic builder loses it: then a container's own network still lets anybody have
# low ports (Docker 20.10 and later), the host's does not.
RUN cargo build --release --locked --bin skep \
    && setcap cap_net_bind_service=+ep target/release/skep

FROM debian:bookworm-slim
# Backups are borg's, over ssh where the target is elsewhere; its fuse module is for `skep backup mount`.
RUN apt-get update \
    && apt-get install -y --no-install-recommends borgbackup openssh-client python3-pyfuse3 fuse3 \
    && rm -rf /var/lib/apt/lists/*
# Its group may write the state, whichever user the container is given (config/stack.yml gives it root:skep).
RUN groupadd --gid 10001 skep \
    && useradd --uid 10001 --gid skep --home-dir /var/lib/skep --no-create-home --shell /usr/sbin/nologin skep \
    && install -d -o skep -g skep -m 2770 /var/lib/skep
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/skep /usr/local/bin/skep
USER skep
VOLUME /var/lib/skep
EXPOSE 80 443 9180
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["/usr/local/bin/skep", "health"]
ENTRYPOINT ["/usr/local/bin/skep"]
CMD ["run"]
