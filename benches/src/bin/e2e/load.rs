//! Tables with a backlog of changes, each kept by a slot from which copies are made.
//!
//! In: a shape and a number of rows. Out: a table (or many), its publication and its slot.
//! Must hold: the backlog is exactly `events` inserts; dropping the load removes all of it.

use anyhow::Context as _;

use crate::world::{World, drop_slot};

/// How the rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writes {
    /// Transactions of so many rows.
    Transactions(u64),
    /// One COPY of all rows.
    Copy,
}

pub struct Load<'a> {
    world: &'a World,
    /// Name of the publication and of the slot, and the tables' prefix.
    pub name: String,
    pub events: u64,
    tables: u64,
}

/// Six columns, about 120 bytes of text: `benches::sample::Shape::row6`.
const ROW6: Table = Table {
    columns: "id bigint PRIMARY KEY, account int NOT NULL, amount numeric(12,2) NOT NULL, \
        email text NOT NULL, note text NOT NULL, created_at timestamptz NOT NULL",
    values: "n, (n % 100000)::int, (n % 1000000) / 100.0, 'user' || n || '@example.com', \
        md5(n::text) || ' ' || n, '2025-12-10 10:30:00.123456+00'::timestamptz + n * interval '1 ms'",
};

/// Columns of a table, and their values from a row number `n`.
struct Table {
    columns: &'static str,
    values: &'static str,
}

impl<'a> Load<'a> {
    /// Rows of six columns.
    pub fn row6(world: &'a World, name: &str, rows: u64, writes: Writes) -> anyhow::Result<Self> {
        let load = Self::new(world, name, rows, 1, ROW6.columns)?;
        load.fill(ROW6.values, writes)?;
        Ok(load)
    }

    /// A table of six columns, without rows yet.
    pub fn empty(world: &'a World, name: &str) -> anyhow::Result<Self> {
        Self::new(world, name, 0, 1, ROW6.columns)
    }

    /// Rows of 50 columns: an id, then integers and short texts in turn.
    pub fn wide(world: &'a World, name: &str, rows: u64) -> anyhow::Result<Self> {
        let mut columns = vec!["id bigint PRIMARY KEY".to_owned()];
        let mut values = vec!["n".to_owned()];
        for index in 1..50 {
            if index % 2 == 0 {
                columns.push(format!("column_{index} int"));
                values.push(format!("(n % 1000)::int + {index} * 1000"));
            } else {
                columns.push(format!("column_{index} text"));
                values.push(format!("'value {index} of the row'"));
            }
        }
        let load = Self::new(world, name, rows, 1, &columns.join(", "))?;
        load.fill(&values.join(", "), Writes::Transactions(1000))?;
        Ok(load)
    }

    /// Rows with one text of 20 kB that does not compress.
    pub fn fat(world: &'a World, name: &str, rows: u64) -> anyhow::Result<Self> {
        let load = Self::new(
            world,
            name,
            rows,
            1,
            "id bigint PRIMARY KEY, body text NOT NULL",
        )?;
        load.world.execute(&format!(
            "ALTER TABLE {name}_1 ALTER body SET STORAGE EXTERNAL"
        ))?;
        load.fill("n, repeat(md5(n::text), 640)", Writes::Transactions(100))?;
        Ok(load)
    }

    /// Rows of six columns, each transaction of 10 rows over 10 of so many tables.
    pub fn tables(world: &'a World, name: &str, tables: u64, rows: u64) -> anyhow::Result<Self> {
        let load = Self::new(world, name, rows, tables, ROW6.columns)?;
        load.world.execute(&format!(
            "DO $$ BEGIN FOR t IN 0 .. {rows} / 10 - 1 LOOP FOR k IN 0 .. 9 LOOP \
             EXECUTE format('INSERT INTO {name}_%s SELECT {values} FROM (SELECT %s::bigint AS n) AS row', \
                 (t * 10 + k) % {tables} + 1, t * 10 + k); \
             END LOOP; COMMIT; END LOOP; END $$",
            values = ROW6.values.replace('\'', "''").replace('%', "%%"),
        ))?;
        Ok(load)
    }

    fn new(
        world: &'a World,
        name: &str,
        events: u64,
        tables: u64,
        columns: &str,
    ) -> anyhow::Result<Self> {
        let load = Self {
            world,
            name: name.to_owned(),
            events,
            tables,
        };
        let names: Vec<String> = load.table_names().collect();
        for table in &names {
            world.execute(&format!("CREATE TABLE {table} ({columns})"))?;
        }
        world.execute(&format!(
            "CREATE PUBLICATION {name} FOR TABLE {}",
            names.join(", ")
        ))?;
        world.create_slot(name)?;
        Ok(load)
    }

    fn fill(&self, values: &str, writes: Writes) -> anyhow::Result<()> {
        let Self { name, events, .. } = self;
        match writes {
            Writes::Transactions(rows) => self.world.execute(&format!(
                "DO $$ BEGIN FOR t IN 0 .. {events} / {rows} - 1 LOOP \
                 INSERT INTO {name}_1 SELECT {values} FROM generate_series(t::bigint * {rows} + 1, (t::bigint + 1) * {rows}) AS n; \
                 COMMIT; END LOOP; END $$"
            )),
            Writes::Copy => {
                let file = self.world.stack.postgres().data_dir().join(format!("{name}.copy"));
                let file = file.to_str().context("the directory's name is not UTF-8")?;
                self.world.execute(&format!(
                    "COPY (SELECT {values} FROM generate_series(1::bigint, {events}) AS n) TO '{file}'"
                ))?;
                self.world.execute(&format!("COPY {name}_1 FROM '{file}'"))?;
                Ok(std::fs::remove_file(file)?)
            }
        }
    }

    /// `{name}_1` and so on.
    pub fn table_names(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.tables).map(|index| format!("{}_{index}", self.name))
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        let dropped = drop_slot(self.world, &self.name)
            .and_then(|()| {
                self.world
                    .execute(&format!("DROP PUBLICATION {}", self.name))
            })
            .and_then(|()| {
                self.table_names()
                    .try_for_each(|table| self.world.execute(&format!("DROP TABLE {table}")))
            });
        if let Err(error) = dropped {
            eprintln!("bench: load {} stays: {error:#}", self.name);
        }
    }
}
