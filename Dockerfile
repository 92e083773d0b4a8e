# syntax=docker/dockerfile:1
# One image with the project's programs: user-api, post-api, cdc-consumer, migrate, and the script
# that registers the connectors. docker-compose.yml says which one a container runs.

FROM rust:1.95.0-slim-trixie AS build
# librdkafka is compiled from source (make, a C++ compiler, zlib) against the system's OpenSSL.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ libssl-dev make pkg-config zlib1g-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /build
COPY . .
# The SQL of the APIs is checked against the committed description of the databases: none runs here.
# The image's own compiler is used: rust-toolchain.toml would make rustup fetch it again.
ENV SQLX_OFFLINE=true RUSTUP_TOOLCHAIN=1.95.0
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --package user-api --package post-api --package cdc-consumer --package migrate \
 && mkdir /programs \
 && cp target/release/user-api target/release/post-api target/release/cdc-consumer target/release/migrate /programs/

FROM debian:trixie-slim
# curl: health checks and connectors/register.sh.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates curl libssl3t64 zlib1g \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin cdc
COPY --from=build /programs/ /usr/local/bin/
COPY connectors/ /opt/cdc/connectors/
COPY views.toml /opt/cdc/views.toml
WORKDIR /opt/cdc
USER cdc
CMD ["cdc-consumer", "run"]
