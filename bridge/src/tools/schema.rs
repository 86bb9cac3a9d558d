//! `bridge schema <table>`.

use wire::Message as _;
use wire::names::{self, BUCKET_SCHEMAS};
use wire::schema::Schema;

use super::{Error, connect, name, nats};
use crate::config::Config;

pub(super) async fn run(config: &Config, table: &str) -> Result<bool, Error> {
    let schema = read(config, table).await?;
    match serde_json::to_string_pretty(&schema) {
        Ok(json) => println!("{json}"),
        Err(_) => println!("{}", schema.to_json()),
    }
    Ok(true)
}

pub(super) async fn read(config: &Config, table: &str) -> Result<Schema, Error> {
    let (schema, name) = name(table)?;
    let (_, jetstream) = connect(config).await?;
    let missing = || Error::NoSchema(table.to_owned());
    let bucket = jetstream
        .get_key_value(BUCKET_SCHEMAS)
        .await
        .map_err(|_| missing())?;
    let value = bucket
        .get(names::schema_key(&schema, &name))
        .await
        .map_err(nats("read a schema"))?;
    Ok(Schema::decode(&value.ok_or_else(missing)?)?)
}
