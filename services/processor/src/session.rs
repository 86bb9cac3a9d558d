//! A session with PostgreSQL as role `app_writer`: the lock of one table, and everything that is
//! written under it.
//!
//! In: commands in order. Out: rows and their outcomes, committed together.
//! Invariant: lock and writes share one connection, so whoever has lost the lock cannot commit.
//! (A pooler that hands out connections per transaction breaks this; connect to PostgreSQL itself.)

use std::collections::HashMap;

use daemon::postgres::{Closed, PostgresOptions};
use serde_json::{Map, Value};
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;
use wire::command::{OperationError, WriteOp};
use wire::names::ROLE_APP_WRITER;

use crate::command::{Command, Key};
use crate::run;
use crate::sqlstate::{self, Class};
use crate::statement::{self, NOT_FOUND, Operations, Refused};
use crate::table::Table;

/// An open session.
pub struct Session {
    client: Client,
    /// Resolves when the connection has ended.
    pub closed: Closed,
    prepared: HashMap<String, tokio_postgres::Statement>,
}

/// Why a session could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No connection, or no login.
    #[error(transparent)]
    Connect(#[from] daemon::postgres::Error),
    /// It does not answer.
    #[error("PostgreSQL does not answer")]
    Postgres(#[from] tokio_postgres::Error),
    /// The role is missing or not ours to take.
    #[error(
        "cannot work as role {ROLE_APP_WRITER}: apply schema/*.sql, then GRANT {ROLE_APP_WRITER} TO the user of \
         DATABASE_URL"
    )]
    Role(#[source] tokio_postgres::Error),
    /// The functions that record operations are missing, or from another version.
    #[error("public.claim_operations is not as this processor calls it: apply schema/*.sql")]
    Schema,
}

/// Why a batch was not applied. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// PostgreSQL said so, or is gone.
    #[error("PostgreSQL did not apply the writes")]
    Postgres(#[from] tokio_postgres::Error),
    /// There is no statement for it.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// What policies see of a write without claims. PostgreSQL: once a setting of ours was set locally it is
/// empty text afterwards, not absent, and empty text is no JSON.
const NO_CLAIMS: &str = "{}";
const HAS_FUNCTIONS: &str =
    "SELECT to_regprocedure('public.claim_operations(uuid[], text, text, text[], uuid[],
    timestamptz[], text[], text[], text[])') IS NOT NULL";
/// Statements kept prepared; each set of columns makes one.
const PREPARED_MAX: usize = 128;

impl Session {
    /// Connects and takes the role.
    pub async fn open(options: &PostgresOptions, name: &str) -> Result<Self, OpenError> {
        let (client, closed) = options.connect(name).await?;
        client
            .batch_execute(&format!(
                "SET ROLE {ROLE_APP_WRITER}; SET request.jwt.claims = '{NO_CLAIMS}'"
            ))
            .await
            .map_err(OpenError::Role)?;
        // Called all the same, every write would be refused with "does not exist", for ever.
        if !client
            .query_one(HAS_FUNCTIONS, &[])
            .await?
            .get::<_, bool>(0)
        {
            return Err(OpenError::Schema);
        }
        Ok(Self {
            client,
            closed,
            prepared: HashMap::new(),
        })
    }

    /// For the catalogue and maintenance.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Takes the table's lock if nobody has it. Never waits in the server: a statement that waits
    /// there holds back vacuum.
    pub async fn try_lock(&self, table: &str) -> Result<bool, tokio_postgres::Error> {
        const LOCK: &str = "SELECT pg_try_advisory_lock(hashtextextended('processor ' || $1, 0))";
        Ok(self.client.query_one(LOCK, &[&table]).await?.get(0))
    }

    /// Applies the commands one after another in one transaction, with their outcomes. Commands that
    /// have an outcome already are passed over. Returns how many ended as [`NOT_FOUND`].
    pub async fn apply(&mut self, commands: &[&Command], table: &Table) -> Result<u64, ApplyError> {
        let applied = self.try_apply(commands, table).await;
        if let Err(error) = &applied
            && error.class() != Class::Lost
        {
            self.client.batch_execute("ROLLBACK").await?;
        }
        applied
    }

    async fn try_apply(&mut self, commands: &[&Command], table: &Table) -> Result<u64, ApplyError> {
        let nobody = Map::new();
        let mut claims = &nobody;
        let mut missed = 0;
        self.client.batch_execute("BEGIN").await?;
        for range in run::cut(commands, table) {
            let run = &commands[range];
            if run[0].claims != *claims {
                claims = &run[0].claims;
                self.set_claims(claims).await?;
            }
            missed += match run {
                [command] if command.key == Key::Generated => {
                    self.apply_generated(command, table).await?;
                    0
                }
                run => self.apply_run(run, table).await?,
            };
        }
        self.client.batch_execute("COMMIT").await?;
        Ok(missed)
    }

    /// What policies and defaults of the database see as
    /// `current_setting('request.jwt.claims', true)::json`, until the transaction ends.
    async fn set_claims(&self, claims: &Map<String, Value>) -> Result<(), tokio_postgres::Error> {
        const SET: &str = "SELECT set_config('request.jwt.claims', $1, true)";
        let text = Value::Object(claims.clone()).to_string();
        self.client.query_one(SET, &[&text]).await?;
        Ok(())
    }

    async fn apply_run(&mut self, run: &[&Command], table: &Table) -> Result<u64, ApplyError> {
        let statement = statement::of_run(run, table)?;
        let operations = Operations::of_run(run, table);
        let prepared = self.prepare(&statement.text).await?;
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&statement.rows];
        parameters.extend(operations.parameters());
        if run[0].op == WriteOp::Create {
            self.client.execute(&prepared, &parameters).await?;
            return Ok(0);
        }
        let fault = json(&OperationError {
            code: NOT_FOUND.to_owned(),
            constraint: None,
            message: format!("there is no such row in {}", statement::entity_table(table)),
        });
        parameters.push(&fault);
        Ok(self.client.execute(&prepared, &parameters).await?)
    }

    async fn apply_generated(
        &mut self,
        command: &Command,
        table: &Table,
    ) -> Result<(), ApplyError> {
        const OPEN: &str = "SELECT public.open_operations($1)";
        const CLOSE: &str =
            "SELECT public.close_operations($1, $2, $3, $4, $5, $6, $7, $8, $9, $1, $1, NULL)";
        let statement = statement::of_generated(command, table)?;
        let operations = Operations::of_run(&[command], table);
        let open = self.client.query(OPEN, &[operations.ids()]).await?;
        if open.is_empty() {
            return Ok(());
        }
        let prepared = self.prepare(&statement.text).await?;
        let row = if prepared.params().is_empty() {
            self.client.query_opt(&prepared, &[]).await?
        } else {
            self.client.query_opt(&prepared, &[&statement.rows]).await?
        };
        let key = row.and_then(|row| row.get::<_, Option<String>>(0));
        let operations = operations.with_key(key);
        self.client.query(CLOSE, &operations.parameters()).await?;
        Ok(())
    }

    async fn prepare(
        &mut self,
        text: &str,
    ) -> Result<tokio_postgres::Statement, tokio_postgres::Error> {
        if let Some(prepared) = self.prepared.get(text) {
            return Ok(prepared.clone());
        }
        if self.prepared.len() == PREPARED_MAX {
            self.prepared.clear();
        }
        let prepared = self.client.prepare(text).await?;
        self.prepared.insert(text.to_owned(), prepared.clone());
        Ok(prepared)
    }

    /// Records an operation as failed, unless it has an outcome already. `operation` is as
    /// [`statement::operation`] makes it.
    pub async fn fail(
        &self,
        operation: &Value,
        fault: &OperationError,
    ) -> Result<(), tokio_postgres::Error> {
        const FAIL: &str = "SELECT public.fail_operation($1::text::jsonb, $2::text)";
        self.client
            .query_one(FAIL, &[&operation.to_string(), &json(fault)])
            .await?;
        Ok(())
    }
}

/// As column `error` holds it.
fn json(fault: &OperationError) -> String {
    serde_json::to_string(fault).expect("an error is text only")
}

impl ApplyError {
    /// What to do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Postgres(error) => sqlstate::classify(error),
            Self::Refused(_) => Class::Reject,
        }
    }

    /// The session ended in the middle of the batch, without the server saying why.
    pub fn is_abrupt(&self) -> bool {
        match self {
            Self::Postgres(error) => sqlstate::is_abrupt(error),
            Self::Refused(_) => false,
        }
    }

    /// It may be the table's shape that is not what it was: a name, a type or what a type can hold.
    pub fn is_about_shape(&self) -> bool {
        let code = self.fault().code;
        ["22", "42", "0A"]
            .iter()
            .any(|class| code.starts_with(class))
    }

    /// As the client reads it.
    pub fn fault(&self) -> OperationError {
        match self {
            Self::Refused(refused) => OperationError {
                code: refused.code.to_owned(),
                constraint: None,
                message: refused.message.clone(),
            },
            Self::Postgres(error) => match error.as_db_error() {
                // The detail may quote other rows, which the client may not be allowed to see.
                Some(error) => OperationError {
                    code: error.code().code().to_owned(),
                    constraint: error.constraint().map(str::to_owned),
                    message: error.message().to_owned(),
                },
                None => OperationError {
                    code: "08006".to_owned(),
                    constraint: None,
                    message: "the connection to PostgreSQL was lost".to_owned(),
                },
            },
        }
    }
}
