//! Parse, start, wait, stop, exit status.

fn main() {}
