//! Everything that the OpenAPI documents offer, with values nobody sane would send.
//!
//! In: both documents. Out: requests made from them with a seed that is printed.
//! Must hold: no answer is a fault of ours (500), whatever is sent, and everything goes on afterwards.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::http::{self, Answer};
use crate::world::{Service, World, new_id};

/// Requests for each operation.
const TRIES: usize = 60;

/// Text that has hurt somebody before.
const TEXTS: &[&str] = &[
    "",
    " ",
    "0",
    "-1",
    "1",
    "null",
    "true",
    "9223372036854775808",
    "-9223372036854775809",
    "1e400",
    "NaN",
    "Infinity",
    "0x10",
    "1_000",
    "'; DROP TABLE users; --",
    "\" OR 1=1",
    "$1",
    "%s%n",
    "../../etc/passwd",
    "{}",
    "[1,2",
    "\\",
    "\\x",
    "\\u0000",
    "\u{0}",
    "\u{7}\u{1b}[31m",
    "\u{202e}rtl",
    "é\u{301}",
    "\u{1F4A9}",
    "\u{FFFF}",
    "00000000-0000-0000-0000-000000000000",
    "{00000000-0000-0000-0000-000000000000}",
    "2026-02-30",
    "0000-00-00",
    "infinity",
    "10000-01-01T00:00:00Z",
    "1970-01-01T00:00:00+99:99",
    "eq.",
    "eq.\u{0}",
    "in.(",
    "in.()",
    "in.(1,2,'3',\"4\")",
    "like.%%%%%%%%%%%%%",
    "like.\\",
    "is.null",
    "is.maybe",
    "lt.NaN",
    "gt.'",
    "not.eq.1",
    "id.asc,id.desc,id",
    "id.asc.nullsfirst",
    "*",
    "id,*",
    "count(*)",
    "eyJ9",
    "AAAA",
    "0/0",
    "FFFFFFFF/FFFFFFFF",
    "100000000/0",
    "wait=99999999999999999999",
    "wait=-1",
    "respond-async, wait=0",
];

/// xorshift: the same seed gives the same requests.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }

    fn text(&mut self) -> String {
        match self.below(12) {
            0 => "x".repeat(1 << self.below(14)),
            1 => (0..self.below(20))
                .map(|_| char::from_u32(u32::try_from(self.below(0x3000)).unwrap()).unwrap_or('?'))
                .collect(),
            _ => TEXTS[self.below(TEXTS.len())].to_owned(),
        }
    }

    /// Any JSON, not too deep.
    fn json(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 6 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.below(2) == 0),
            2 => json!(i64::MIN + i64::try_from(self.below(3)).unwrap()),
            3 => json!(u64::MAX),
            4 => json!(-0.0 + self.below(1000) as f64 * 1e305),
            5 => json!(self.text()),
            6 => Value::Array((0..self.below(4)).map(|_| self.json(depth - 1)).collect()),
            7 => Value::Array(vec![json!([[[[[]]]]]); 3]),
            _ => {
                let members = (0..self.below(4)).map(|_| (self.text(), self.json(depth - 1)));
                Value::Object(members.collect())
            }
        }
    }
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => value,
    }
}

/// A value that the schema allows, as far as it is understood here, or one that it may not.
fn value(document: &Value, schema: &Value, random: &mut Random) -> Value {
    let schema = resolve(document, schema);
    if random.below(4) == 0 {
        return random.json(3);
    }
    if let Some(one_of) = schema["anyOf"].as_array() {
        let one = &one_of[random.below(one_of.len())];
        return value(document, one, random);
    }
    let kind = schema["type"].as_str().or(schema["type"][0].as_str());
    match kind {
        Some("integer") => {
            let edges = [
                json!(0),
                schema["minimum"].clone(),
                schema["maximum"].clone(),
            ];
            edges[random.below(3)].clone()
        }
        Some("boolean") => json!(random.below(2) == 0),
        Some("number") => json!(1.5),
        Some("null") => Value::Null,
        Some("array") => {
            let items = (0..random.below(3)).map(|_| value(document, &schema["items"], random));
            Value::Array(items.collect())
        }
        Some("object") => object(document, schema, random),
        Some("string") => match schema["format"].as_str() {
            Some("uuid") => json!(new_id()),
            Some("date") => json!("2026-02-28"),
            Some("date-time") => json!("2026-02-28T10:00:00Z"),
            _ => match &schema["enum"] {
                Value::Array(labels) => labels[random.below(labels.len())].clone(),
                _ => json!(random.text().replace('\0', "")),
            },
        },
        _ => random.json(3),
    }
}

fn object(document: &Value, schema: &Value, random: &mut Random) -> Value {
    let mut members = Map::new();
    let properties = schema["properties"].as_object();
    for (name, property) in properties.into_iter().flatten() {
        let is_required = schema["required"]
            .as_array()
            .is_some_and(|required| required.contains(&json!(name)));
        if is_required || random.below(2) == 0 {
            members.insert(name.clone(), value(document, property, random));
        }
    }
    if random.below(10) == 0 {
        members.insert(random.text(), random.json(2));
    }
    Value::Object(members)
}

/// As a path or a query may carry it: nearly everything escaped, some of it wrongly.
fn escaped(text: &str, random: &mut Random) -> String {
    if random.below(20) == 0 {
        return ["%", "%zz", "%ff%fe", "%c0%af", "+", "a%2"][random.below(6)].to_owned();
    }
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").unwrap();
        }
    }
    escaped
}

/// As a header may carry it.
fn header(text: &str) -> String {
    text.chars()
        .filter(|character| !character.is_control())
        .take(4000)
        .collect()
}

/// One request for an operation of the document, and its answer.
async fn attack(
    service: &Service,
    document: &Value,
    (method, path, operation): (&str, &str, &Value),
    random: &mut Random,
) -> (String, Answer) {
    let mut target = path.to_owned();
    let mut query = Vec::new();
    let mut headers = Vec::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let parameter = resolve(document, parameter);
        let name = parameter["name"].as_str().unwrap();
        let text = match value(document, &parameter["schema"], random) {
            Value::String(text) if random.below(2) == 0 => text,
            Value::String(_) => random.text(),
            other => other.to_string(),
        };
        let is_required = parameter["required"] == true;
        match parameter["in"].as_str().unwrap() {
            "path" => {
                let text = if text.is_empty() { "x" } else { &text };
                target = target.replace(&format!("{{{name}}}"), &escaped(text, random));
            }
            // Of twenty parameters a handful at a time.
            "query" if is_required || random.below(4) == 0 => {
                let (name, text) = (escaped(name, random), escaped(&text, random));
                query.push(format!("{name}={text}"));
            }
            "header" if name == "Idempotency-Key" && random.below(10) != 0 => {
                headers.push((name.to_owned(), new_id()));
            }
            // A long wait is a valid wish, and not what is tested here.
            "header" if name != "Prefer" && random.below(3) == 0 => {
                headers.push((name.to_owned(), header(&text)));
            }
            _ => {}
        }
    }
    if !query.is_empty() {
        target = format!("{target}?{}", query.join("&"));
    }
    let body = operation["requestBody"]["content"]["application/json"].get("schema");
    let body = body.map_or_else(String::new, |schema| match random.below(12) {
        0 => random.text(),
        1 => "[".repeat(random.below(5000)),
        2 => random.json(4).to_string(),
        _ => object(document, resolve(document, schema), random).to_string(),
    });
    let headers: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    // nginx and the services allow 8 KiB and more; the rest is the HTTP library's to refuse.
    target.truncate(6000);
    let method = method.to_uppercase();
    let sent = format!("{method} {target} {headers:?} {body}");
    let answer = http::send(service.addr, &method, &target, &headers, body.as_bytes()).await;
    let answer = answer.unwrap_or_else(|error| panic!("{error}: {sent}"));
    (sent, answer)
}

/// Answers by status, for people.
async fn walk(service: &Service, random: &mut Random) -> Map<String, Value> {
    let document = service.get("/openapi.json").await.json();
    let mut counts = Map::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        // Streams do not end by themselves; other tests open them.
        if path == "/changes" {
            continue;
        }
        for (method, operation) in methods.as_object().unwrap() {
            for _ in 0..TRIES {
                let operation = (method.as_str(), path.as_str(), operation);
                let (sent, answer) = attack(service, &document, operation, random).await;
                // An LSN from the future may be reached one day: come back.
                let is_later = answer.status == 503 && !answer.header("retry-after").is_empty();
                assert!(is_later || answer.status < 500, "{answer:?} to {sent}");
                let declared = &operation.2["responses"];
                let is_declared = declared.get(answer.status.to_string()).is_some()
                    || matches!(answer.status, 400 | 404 | 405 | 414 | 431);
                assert!(is_declared, "{answer:?} is not documented; to {sent}");
                let count = counts.entry(answer.status.to_string()).or_insert(json!(0));
                *count = json!(count.as_u64().unwrap() + 1);
            }
        }
    }
    counts
}

#[tokio::test(flavor = "multi_thread")]
async fn no_hostile_value_is_answered_with_a_fault_of_ours() {
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) | 1;
    let seed = std::env::var("CIRCLE_SEED").map_or(seed, |seed| seed.parse().unwrap());
    println!("CIRCLE_SEED={seed}");
    let mut random = Random(seed);
    let world = World::up().await;
    world.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s');
         CREATE TABLE everything (id bigint, part text, flag boolean, small smallint NOT NULL,
            amount numeric(8,2), ratio double precision, day date, at timestamptz, clock time,
            span interval, raw bytea, doc jsonb, tags text[], numbers integer[], feeling mood,
            short varchar(3), net inet, range int4range, \"we\"\"ird na.me\" text,
            PRIMARY KEY (id, part));
         GRANT SELECT ON everything TO app_reader, bridge_reader;
         GRANT SELECT, INSERT, UPDATE, DELETE ON everything TO app_writer;
         ALTER PUBLICATION cdc_pub ADD TABLE everything",
    );
    world.gateway().documents("/everything").await;
    world.reader().documents("/everything/{id}").await;

    let written = walk(world.gateway(), &mut random).await;
    println!("gateway: {written:?}");
    let read = walk(world.reader(), &mut random).await;
    println!("reader: {read:?}");

    // What was accepted has an outcome, however hostile; nobody went down over it.
    let accepted = written.get("202").and_then(Value::as_u64).unwrap_or(0);
    world.settle(usize::try_from(accepted).unwrap()).await;
    println!("outcomes: {}", world.outcomes());
    assert_eq!(world.messages("WRITES_DLQ").await, 0);
    let user = json!({"name": "after", "email": "after@example.com"});
    let after = world.gateway().write("POST", "/users", &user).await;
    assert_eq!(after.status, 200, "{after:?}");
    for service in [&world.gateways[0], &world.processors[0], &world.readers[0]] {
        assert!(
            service.process.is_running(),
            "{}",
            service.process.log_tail()
        );
    }
}
