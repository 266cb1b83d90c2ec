# `just` lists what there is.
default:
    @just --list

# Runs the daemon on the loopback with the shipped lists, without root.
run *arguments:
    cargo run -- run {{arguments}}

# Every test: unit, integration, real clients, virtual machines. As root.
test:
    tests/run

# What must pass before a change lands.
ci:
    .ci/run

# One fuzz target for a minute, e.g. `just fuzz hello`. Needs cargo-fuzz (`cargo install cargo-fuzz`).
fuzz target seconds="60":
    RUSTC_BOOTSTRAP=1 cargo fuzz run -s none {{target}} -- -max_total_time={{seconds}} -max_len=16384

# Benchmarks, e.g. `just bench decide`.
bench *arguments:
    cargo bench -- {{arguments}}
