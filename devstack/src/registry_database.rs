//! The registry's own database: it keeps schema ids across restarts.

use sqlx::{Connection, PgConnection};

use crate::addresses::{HOST, POSTGRES_PORT, REGISTRY_DATABASE, admin_url};

pub(crate) fn jdbc_url() -> String {
    format!("jdbc:postgresql://{HOST}:{POSTGRES_PORT}/{REGISTRY_DATABASE}")
}

/// Creates the role and the database when they are missing.
pub(crate) async fn ensure() -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(&admin_url("postgres")).await?;
    // Neither statement can be conditional by itself, and `create database` runs in no block.
    let role: Option<i32> = sqlx::query_scalar("select 1 from pg_roles where rolname = $1")
        .bind(REGISTRY_DATABASE)
        .fetch_optional(&mut connection)
        .await?;
    if role.is_none() {
        sqlx::query("create role apicurio login password 'apicurio'")
            .execute(&mut connection)
            .await?;
    }
    let database: Option<i32> = sqlx::query_scalar("select 1 from pg_database where datname = $1")
        .bind(REGISTRY_DATABASE)
        .fetch_optional(&mut connection)
        .await?;
    if database.is_none() {
        sqlx::query("create database apicurio owner apicurio").execute(&mut connection).await?;
        sqlx::query("revoke connect on database apicurio from public")
            .execute(&mut connection)
            .await?;
    }
    connection.close().await
}
