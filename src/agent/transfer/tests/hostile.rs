//! One side against a peer that does what it should not.
