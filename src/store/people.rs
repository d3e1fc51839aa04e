//! The people's endpoints, over any store.
