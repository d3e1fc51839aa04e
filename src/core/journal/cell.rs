//! Cells: what the changes of an op come to, and the one rule of merging.
