//! user-api
