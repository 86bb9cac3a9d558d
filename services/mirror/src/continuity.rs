//! Whether the stream goes on where the tables are.
//!
//! In: what the stream holds, what the file notes. Out: the tables that must be seeded anew.
//! Invariant: a table that is not marked lacks no message between its sequence and the stream's last.

use wire::schema::Schema;

use crate::desk::Desk;
use crate::follow;
use crate::join::{Bounds, Need};
use crate::source::Source;
use crate::store::Table;
use crate::table::TableName;

/// Marks the tables that the stream does not continue; true when there are any.
pub async fn check(source: &Source, desk: &Desk) -> Result<bool, follow::Error> {
    let bounds = source.bounds().await?;
    let tail = desk.store().tail()?;
    let rewritten = match tail {
        Some(tail) => {
            let now = source.position_at(tail.sequence).await?;
            // None: retention has taken it, and there is nothing to compare.
            now.filter(|(position, _)| *position != tail.position)
        }
        None => None,
    };
    let rewritten_ns = rewritten.map(|(_, stored_ns)| stored_ns);
    let needs = needs(desk, |table| broken(table, &bounds, rewritten_ns));
    if needs.is_empty() {
        return check_schema(source, desk).await;
    }
    desk.store().mark(&needs)?;
    Ok(true)
}

/// Marks the tables whose rows changed with their schema while nobody listened, and those that are gone;
/// true when there are any.
pub async fn check_schema(source: &Source, desk: &Desk) -> Result<bool, follow::Error> {
    let mut schemas = Vec::new();
    let names = needs(desk, |_| Some(Need::default()));
    for (name, _) in &names {
        schemas.push(source.schema(name).await?);
    }
    let mut schemas = schemas.iter();
    let needs = needs(desk, |table| {
        outdated(table, schemas.next().and_then(Option::as_ref))
    });
    if needs.is_empty() {
        return Ok(false);
    }
    desk.store().mark(&needs)?;
    Ok(true)
}

fn needs(desk: &Desk, mut need: impl FnMut(&Table) -> Option<Need>) -> Vec<(TableName, Need)> {
    let store = desk.store();
    let tables = store.tables().iter();
    tables
        .filter_map(|table| Some((table.name.clone(), need(table)?)))
        .collect()
}

fn outdated(table: &Table, schema: Option<&Schema>) -> Option<Need> {
    let Some(schema) = schema else {
        return Some(Need {
            reason: "the source has no such table, or publishes it no more".to_owned(),
            ..Need::default()
        });
    };
    (table.schema.version < schema.seed_version).then(|| Need {
        reason: format!(
            "rows changed with version {} of the schema",
            schema.seed_version
        ),
        schema_version_min: schema.seed_version,
        ..Need::default()
    })
}

/// Why the stream does not continue the table, if it does not. `rewritten_ns`: another event stands
/// where the last one applied stood, since then.
fn broken(table: &Table, bounds: &Bounds, rewritten_ns: Option<i128>) -> Option<Need> {
    let mut need = Need::default();
    need.reason = if i128::from(table.ended_ns) < bounds.created_ns {
        "the stream was made anew".to_owned()
    } else if let Some(rewritten_ns) = rewritten_ns {
        need.after_ns = i64::try_from(rewritten_ns).unwrap_or(i64::MAX);
        "the stream went back and took another course".to_owned()
    } else if bounds.last_seq < table.sequence {
        format!(
            "the stream ends at {}, before {}",
            bounds.last_seq, table.sequence
        )
    } else if table.sequence + 1 < bounds.first_seq {
        let lost = table.sequence + 1;
        format!(
            "messages {lost} to {} have left the stream",
            bounds.first_seq - 1
        )
    } else {
        return None;
    };
    Some(need)
}
