//! Values of every type, at their edges, as PostgreSQL's own text has them.

use wire::{Event, Value};

use crate::columns::assert_same;
use crate::rig::Rig;

/// Creates table `t` of one column per pair of type and value, inserts them and returns the event.
/// Each column has the name of its number; column 0 is the key.
#[track_caller]
fn inserted(rig: &Rig, values: &[(&str, &str)]) -> Event {
    let (mut columns, mut literals) = (String::new(), String::new());
    for ((type_name, literal), number) in values.iter().zip(1_usize..) {
        columns.extend([", \"", &number.to_string(), "\" ", type_name]);
        literals.extend([", ", literal]);
    }
    rig.sql(&format!("CREATE TABLE t (\"0\" int PRIMARY KEY{columns})"));
    let _bridge = rig.bridge(&[]);
    rig.sql(&format!("INSERT INTO t VALUES (0{literals})"));
    let mut events = rig.events();
    assert_eq!(events.len(), 1);
    events.remove(0)
}

/// Every value is the one SQL shows, in the kind the contract names.
#[track_caller]
fn assert_as_in_sql(rig: &Rig, values: &[(&str, &str)]) -> Event {
    let event = inserted(rig, values);
    assert_same(&event.columns, &rig.rows("t", "")[0]);
    event
}

fn value(event: &Event, number: usize) -> &Value {
    &event.columns[number].value
}

#[test]
fn numbers_keep_their_edges() {
    let rig = Rig::new();

    let event = assert_as_in_sql(
        &rig,
        &[
            ("int2", "-32768"),
            ("int4", "2147483647"),
            ("int8", "9223372036854775807"),
            ("int8", "-9223372036854775808"),
            ("oid", "4294967295"),
            ("numeric", "'NaN'"),
            ("numeric", "'-Infinity'"),
            ("numeric", "1e-300"),
            (
                "numeric(40, 20)",
                "12345678901234567890.00000000000000000001",
            ),
            ("float8", "'NaN'"),
            ("float8", "'Infinity'"),
            ("float8", "'-Infinity'"),
            ("float8", "'-0'"),
            ("float8", "0.1"),
            ("float8", "5e-324"),
            ("float8", "1.7976931348623157e308"),
            ("float4", "'NaN'"),
            ("float4", "1.1"),
            ("float4", "'-0'"),
            ("float4", "3.4028235e38"),
            ("money", "-1234.5"),
            ("bool", "true"),
            ("bool", "false"),
        ],
    );

    assert_eq!(value(&event, 3), &Value::Int(i64::MAX));
    assert_eq!(value(&event, 4), &Value::Int(i64::MIN));
    assert_eq!(value(&event, 5), &Value::Int(4_294_967_295));
    assert_eq!(value(&event, 6), &Value::Text("NaN".into()));
    assert!(matches!(value(&event, 10), Value::Float(float) if float.is_nan()));
    assert_eq!(value(&event, 12), &Value::Float(f64::NEG_INFINITY));
    assert!(matches!(value(&event, 13), Value::Float(float) if float.is_sign_negative()));
    assert_eq!(
        value(&event, 18),
        &Value::Float(1.1),
        "a float4 is what its text says"
    );
    assert_eq!(value(&event, 21), &Value::Text("-$1,234.50".into()));
}

#[test]
fn times_keep_their_edges() {
    let rig = Rig::new();

    let event = assert_as_in_sql(
        &rig,
        &[
            ("timestamp", "'0044-03-15 12:00:00 BC'"),
            ("timestamp", "'infinity'"),
            ("timestamptz", "'-infinity'"),
            ("timestamptz", "'12345-06-07 08:09:10.123456+00'"),
            ("timestamptz", "'2025-12-10 10:30:00+05:30'"),
            ("timestamptz", "'4713-01-01 00:00:00+00 BC'"),
            ("timestamp", "'294276-12-31 23:59:59.999999'"),
            ("date", "'infinity'"),
            ("date", "'0001-01-01 BC'"),
            ("time", "'24:00:00'"),
            ("timetz", "'23:59:59.999999-15:59'"),
            ("interval", "'-1 year 2 mons -3 days 04:05:06.789'"),
            ("interval", "'0'"),
        ],
    );

    assert_eq!(
        value(&event, 1),
        &Value::Text("0044-03-15 12:00:00 BC".into())
    );
    assert_eq!(value(&event, 2), &Value::Text("infinity".into()));
    assert_eq!(
        value(&event, 4),
        &Value::Text("12345-06-07 08:09:10.123456+00".into())
    );
    assert_eq!(
        value(&event, 5),
        &Value::Text("2025-12-10 05:00:00+00".into())
    );
}

#[test]
fn text_and_bytes_are_exact() {
    let rig = Rig::new();

    let event = assert_as_in_sql(
        &rig,
        &[
            ("text", "''"),
            ("text", "NULL"),
            ("bytea", "''"),
            ("bytea", "NULL"),
            ("bytea", "'\\x00ff5c78'"),
            (
                "text",
                "E'tab\\t newline\\n quote\\' backslash\\\\ \\u0001'",
            ),
            ("text", "'\u{1F418} äöü \u{202E}'"),
            ("char(5)", "'ab'"),
            ("varchar", "'\\N'"),
            ("\"char\"", "'x'"),
            ("name", "'name'"),
            ("bytea", "decode(repeat('00ff', 100000), 'hex')"),
            ("text", "repeat('\u{20AC}', 100000)"),
            ("bool", "NULL"),
            ("int", "NULL"),
        ],
    );

    assert_eq!(value(&event, 1), &Value::Text(String::new()));
    assert_eq!(value(&event, 2), &Value::Null);
    assert_eq!(value(&event, 3), &Value::Bytes(Vec::new()));
    assert_eq!(value(&event, 4), &Value::Null);
    assert_eq!(value(&event, 5), &Value::Bytes(vec![0, 0xff, 0x5c, 0x78]));
    assert_eq!(value(&event, 8), &Value::Text("ab   ".into()));
    assert_eq!(value(&event, 9), &Value::Text("\\N".into()));
}

#[test]
fn types_made_of_others_are_their_text() {
    let rig = Rig::new();
    rig.sql(
        "CREATE TYPE mood AS ENUM ('happy', 'so so', '');
         CREATE TYPE pair AS (a int, b text);
         CREATE TYPE span AS RANGE (subtype = float8);
         CREATE EXTENSION hstore",
    );

    let event = assert_as_in_sql(
        &rig,
        &[
            ("mood", "'so so'"),
            ("mood", "''"),
            ("mood[]", "ARRAY['happy', NULL, '']::mood[]"),
            ("int[]", "'{}'"),
            ("int[][]", "'{{1,2},{3,NULL}}'"),
            ("int[]", "'[0:1]={1,2}'"),
            ("text[]", "ARRAY['a,b', '\"', 'NULL', NULL, '']"),
            ("pair", "ROW(1, 'x, \"y\"')"),
            ("pair", "ROW(NULL, '')"),
            ("pair[]", "ARRAY[ROW(1, 'a')]::pair[]"),
            ("int4range", "'[1,5]'"),
            ("int4range", "'empty'"),
            ("tstzrange", "'[2020-01-01 00:00+00,)'"),
            ("span", "'(0.5,1.5]'"),
            ("int4multirange", "'{[1,3),[5,7)}'"),
            ("hstore", "'a=>1, \"b c\"=>NULL'"),
            ("json", "'{ \"kept\":  [1,  2] }'"),
            ("jsonb", "'{\"b\": 1, \"a\": [1.50, null]}'"),
            ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'"),
            ("inet", "'10.0.0.1/8'"),
            ("macaddr", "'08:00:2b:01:02:03'"),
            ("bit(5)", "B'10101'"),
            ("bit varying", "B''"),
            ("point", "'(1.5,-2)'"),
            ("polygon", "'((0,0),(1,1),(1,0))'"),
            ("tsvector", "'a:1 fat:2'"),
            ("xml", "'<a>1</a>'"),
            ("pg_lsn", "'16/B374D848'"),
            ("regclass", "'pg_class'"),
        ],
    );

    assert_eq!(value(&event, 1), &Value::Text("so so".into()));
    assert_eq!(
        value(&event, 16),
        &Value::Text(r#""a"=>"1", "b c"=>NULL"#.into())
    );
    assert_eq!(
        value(&event, 17),
        &Value::Text("{ \"kept\":  [1,  2] }".into())
    );
}

#[test]
fn a_domain_is_what_it_is_made_of() {
    let rig = Rig::new();
    rig.sql(
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0);
         CREATE DOMAIN small AS positive CHECK (VALUE < 100);
         CREATE DOMAIN needed AS int8 NOT NULL;
         CREATE DOMAIN digest AS bytea; CREATE DOMAIN flag AS bool; CREATE DOMAIN ratio AS float8;
         CREATE DOMAIN label AS text; CREATE DOMAIN several AS int[]",
    );

    let event = assert_as_in_sql(
        &rig,
        &[
            ("positive", "1"),
            ("small", "99"),
            ("needed", "7"),
            ("digest", "'\\x01'"),
            ("flag", "true"),
            ("ratio", "0.5"),
            ("label", "'x'"),
            ("several", "'{1,2}'"),
            ("small", "NULL"),
            ("small[]", "'{1}'"),
        ],
    );

    assert_eq!(value(&event, 2), &Value::Int(99));
    assert_eq!(value(&event, 3), &Value::Int(7));
    assert_eq!(value(&event, 4), &Value::Bytes(vec![1]));
    assert_eq!(value(&event, 5), &Value::Bool(true));
    assert_eq!(value(&event, 6), &Value::Float(0.5));
    assert_eq!(value(&event, 8), &Value::Text("{1,2}".into()));
    assert_eq!(value(&event, 9), &Value::Null);
}

#[test]
fn defaults_of_role_and_database_do_not_leak_into_values() {
    let mut rig = Rig::new();
    let (role, database) = (format!("reader_of_{}", rig.database), rig.database.clone());
    rig.sql(&format!(
        "CREATE ROLE {role} LOGIN REPLICATION PASSWORD 'secret'"
    ));
    for owner in [format!("ROLE {role}"), format!("DATABASE {database}")] {
        for setting in [
            "TimeZone = 'Asia/Kolkata'",
            "DateStyle = 'German, DMY'",
            "IntervalStyle = 'iso_8601'",
            "bytea_output = 'escape'",
            "extra_float_digits = -15",
        ] {
            rig.sql(&format!("ALTER {owner} SET {setting}"));
        }
    }
    rig.sql(&format!(
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
    ));
    rig.pg_url = rig.postgres().url_as(&role, "secret", &database);

    let event = assert_as_in_sql(
        &rig,
        &[
            ("timestamptz", "'2025-12-31 20:00:00+00'"),
            ("date", "'2025-12-31'"),
            ("interval", "'1 day 02:03:04'"),
            ("bytea", "'\\x5c00ff'"),
            ("float8", "0.1::float8 + 0.2::float8"),
        ],
    );
    rig.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));

    assert_eq!(
        value(&event, 1),
        &Value::Text("2025-12-31 20:00:00+00".into())
    );
    assert_eq!(value(&event, 3), &Value::Text("1 day 02:03:04".into()));
    assert_eq!(value(&event, 4), &Value::Bytes(vec![0x5c, 0, 0xff]));
    assert_eq!(value(&event, 5), &Value::Float(0.1 + 0.2));
}
