# Commands for contributors; CONTRIBUTING.md says what each is for.

# What every change must pass
ci:
    .ci/run

# All tests
test:
    cargo test --locked

# The engine and the journal in a simulated group
simulate seeds="50000":
    SEEDS={{seeds}} cargo test --release --test journal_sim whatever_happens
    SEEDS={{seeds}} cargo test --release --test sim
    SEEDS={{seeds}} cargo test --release --test folder_sim whatever_happens

# Three agents, killed at random while clients write
soak rounds="2000":
    ROUNDS={{rounds}} cargo test --release --test soak -- --ignored --nocapture

# Power cuts on ext4 and XFS images (Linux, root)
power-cuts cuts="500":
    cargo build --release --locked
    CUTS={{cuts}} tests/power_cuts.py

# A running agent against its own description (needs `pip install schemathesis`)
description:
    cargo build --locked
    tests/schemathesis.sh

# Five agents with churn: nothing lost, nothing grows (Linux)
churn minutes="120":
    cargo build --release --locked
    MINUTES={{minutes}} tests/churn.py

# A thousand panics of the QUIC library
panics:
    cargo test --release --lib a_thousand_panics -- --ignored

# One fuzz target, for so many seconds
fuzz target="op_body" seconds="3600":
    RUSTC_BOOTSTRAP=1 cargo fuzz run {{target}} -- -max_total_time={{seconds}}

# Speed, beside the alternatives that are installed
bench *subsets="mixed large small live":
    cargo bench --bench transfer -- {{subsets}}
    cargo bench --bench journal
    cargo bench --bench reconcile
