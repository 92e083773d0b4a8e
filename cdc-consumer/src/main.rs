//! cdc-consumer
fn main() {}
