//! post-api
fn main() {}
