//! post-api
