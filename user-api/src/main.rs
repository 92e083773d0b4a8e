//! user-api
fn main() {}
