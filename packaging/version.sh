#!/usr/bin/env bash
# Prints the version in Cargo.toml.
sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$(dirname "$0")/../Cargo.toml"
