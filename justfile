# One recipe for each check, with the command that `./tests/run` uses. `just` lists them.

set shell := ["bash", "-euo", "pipefail", "-c"]

# List the recipes.
default:
    @just --list --unsorted

# Everything, as the CI does.
all:
    ./tests/run

# Format, lints, build, tests beside the code.
quick:
    ./tests/run --quick

# Formatting of all workspaces.
fmt:
    cargo fmt --all --check
    cargo fmt --manifest-path tests/node/Cargo.toml --check
    cargo fmt --manifest-path tests/crypto/Cargo.toml --check
    cargo fmt --manifest-path tests/fuzz/Cargo.toml --check
    cargo fmt --manifest-path tests/clients/postgres/rust/Cargo.toml --check

# Lints.
lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

# Programs and tests.
build:
    cargo build --workspace --bins --tests --locked

# Tests; arguments go to nextest, for instance `just test -E 'test(breaker)'`.
test *ARGS:
    cargo nextest run --workspace --locked {{ ARGS }}

# Examples in the documentation, among them docs/adding-a-filter.md.
doctest:
    cargo test --workspace --doc --locked --quiet

# Signatures of the node's own library, verified by every backend.
signatures:
    cargo test --release --locked --manifest-path tests/crypto/Cargo.toml --target-dir target/crypto-peers

# The documentation of the crates.
doc:
    RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked

# Banned crates, duplicate versions, direction of dependencies, licences, sources.
deny:
    cargo deny --workspace check bans licenses sources

# Known vulnerabilities. Fetches the advisory database from github.com, so it is a recipe of its own.
advisories:
    cargo deny --workspace check advisories

# Whether configs/schema.json is what the program prints.
schema: build
    diff -u configs/schema.json <("${CARGO_TARGET_DIR:-target}/debug/qudag-sidecar" schema)

# Write configs/schema.json anew.
schema-write: build
    "${CARGO_TARGET_DIR:-target}/debug/qudag-sidecar" schema > configs/schema.json

# Fuzz every target for so many seconds.
fuzz SECONDS="5":
    RUSTC_BOOTSTRAP=1 tests/fuzz/run {{ SECONDS }}

# Tests with coverage; fails below 85 % of lines.
coverage:
    ./tests/run --coverage

# Direct, through the sidecar, and beside other programs: chain, dns, peer, front, db or all.
bench WHAT="all" *ARGS:
    cargo run --release -p qudag-bench -- {{ WHAT }} {{ ARGS }}

# A wide-area link between two namespaces, as root: `just wan --delay 40ms --loss 1%`.
wan *ARGS:
    cargo run -p qudag-wan -- {{ ARGS }}
