# The gateway (`run`, the default) and the streaming server of a function (`stream`), in one image.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY lua lua
COPY plugins plugins
COPY web web
# Not built, but Cargo wants to see what its manifest names.
COPY benches benches
RUN cargo build --release --locked --bin streamgate

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /etc/streamgate --shell /usr/sbin/nologin streamgate
COPY --from=build /build/target/release/streamgate /usr/local/bin/streamgate
# The shipped plugins, to read and to build upon; a folder mounted over them is used instead.
COPY plugins /etc/streamgate/plugins
COPY lua /etc/streamgate/lua
WORKDIR /etc/streamgate
USER 10001:10001

# The gateway and the streaming server, the control server, and media.
EXPOSE 49100/tcp 8011/tcp 47998-48020/udp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=6s --start-period=5s --retries=3 CMD ["streamgate", "healthcheck"]
ENTRYPOINT ["streamgate"]
CMD ["run"]
