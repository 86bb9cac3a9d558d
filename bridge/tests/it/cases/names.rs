//! Names that need care in SQL, in subjects or in both.

use crate::columns::{assert_same, text};
use crate::rig::Rig;

#[test]
fn any_name_a_table_or_a_column_can_have_arrives_unchanged() {
    let rig = Rig::new();
    let longest = "n".repeat(63);
    let names = [
        "Users",
        "order.items",
        "two words",
        "it's",
        r#"the "quoted""#,
        "таблица",
        "表\u{1F418}",
        "per%cent",
        "a*b>c",
        "tab\tand\nnewline",
        "\\back\\slash",
        "select",
        "$1",
        " ",
        &longest,
    ];
    for name in names {
        let quoted = quoted(name);
        rig.sql(&format!(
            "CREATE TABLE {quoted} ({quoted} text PRIMARY KEY)"
        ));
    }
    let bridge = rig.bridge(&[]);

    for name in names {
        let quoted = quoted(name);
        rig.sql(&format!("INSERT INTO {quoted} VALUES ('value')"));
    }
    let stored = rig.stored();
    bridge.drain();

    let tables: Vec<_> = stored
        .iter()
        .map(|stored| stored.event.table.as_str())
        .collect();
    assert_eq!(tables, names);
    for stored in &stored {
        // That the subject is the contract's has been checked; here: that it is one table's.
        assert_eq!(stored.subject.split('.').count(), 3, "{}", stored.subject);
        let event = &stored.event;
        assert_same(&event.columns, &[text(&event.table, "value")]);
    }
}

#[test]
fn the_flag_names_tables_as_they_are_stored() {
    let rig = Rig::new();
    rig.sql(r#"CREATE TABLE "Two Words" (id int); CREATE TABLE "two words" (id int)"#);
    let _bridge = rig.bridge(&["--table", "Two Words,fence"]);

    rig.sql(r#"INSERT INTO "two words" VALUES (1); INSERT INTO "Two Words" VALUES (2)"#);
    let stored = rig.stored();

    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].subject, "cdc.Two%20Words.insert");
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
