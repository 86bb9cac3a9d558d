# One image per binary: docker build --build-arg BINARY=bridge -t bridge .
FROM rust:1.95-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ARG BINARY=bridge
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    cargo build --release --locked --package "$BINARY" --bin "$BINARY" && cp "target/release/$BINARY" /service

FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /service /service
ENTRYPOINT ["/service"]
