//! How each database says itself what is in it: the command in its container, the name of what comes out, the files of the volume that it
//! stands for, and how a whole dump is told from a part of one. Passwords stay in the container: its own environment has them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::Database;

/// Of a dump's beginning and end so much is looked at.
const HEAD: usize = 16;
const TAIL: usize = 1024;
/// A Redis server's random mark for the end of what it sends.
const MARK: usize = 40;

/// PostgreSQL asks nobody who comes by its socket, unless it was told to.
const POSTGRES: &str = r#"if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE"); else PGPASSWORD=${POSTGRES_PASSWORD:-}; fi
if [ -n "$PGPASSWORD" ]; then export PGPASSWORD; else unset PGPASSWORD; fi
exec pg_dumpall -U "${POSTGRES_USER:-postgres}""#;

/// The password by the environment of the program, which is not seen in lists of processes.
const MYSQL: &str = r#"file=${MYSQL_ROOT_PASSWORD_FILE:-${MARIADB_ROOT_PASSWORD_FILE:-}}
if [ -n "$file" ]; then MYSQL_PWD=$(cat "$file"); else MYSQL_PWD=${MYSQL_ROOT_PASSWORD:-${MARIADB_ROOT_PASSWORD:-}}; fi
if [ -n "$MYSQL_PWD" ]; then export MYSQL_PWD; else unset MYSQL_PWD; fi
for tool in TOOLS; do
  if command -v "$tool" >/dev/null; then exec "$tool" --all-databases --single-transaction --routines --events --triggers -uroot; fi
done
echo "there is neither of TOOLS in the container" >&2
exit 127"#;

/// The password by a file that only the program sees (YAML, so quotes and backslashes are escaped).
const MONGODB: &str = r#"name=${MONGO_INITDB_ROOT_USERNAME:-}
file=${MONGO_INITDB_ROOT_USERNAME_FILE:-}; [ -z "$file" ] || name=$(cat "$file")
[ -n "$name" ] || exec mongodump --archive
secret=${MONGO_INITDB_ROOT_PASSWORD:-}
file=${MONGO_INITDB_ROOT_PASSWORD_FILE:-}; [ -z "$file" ] || secret=$(cat "$file")
secret=$(printf %s "$secret" | sed 's/[\\"]/\\&/g')
exec mongodump --archive --username "$name" --authenticationDatabase admin --config /dev/fd/3 3<<END
password: "$secret"
END"#;

const REDIS: &str = r#"file=${REDIS_PASSWORD_FILE:-}
if [ -n "$file" ]; then REDISCLI_AUTH=$(cat "$file"); elif [ -n "${REDIS_PASSWORD:-}" ]; then REDISCLI_AUTH=$REDIS_PASSWORD; fi
[ -z "${REDISCLI_AUTH:-}" ] || export REDISCLI_AUTH
for tool in redis-cli valkey-cli; do
  if command -v "$tool" >/dev/null; then exec "$tool" --rdb -; fi
done
echo "there is neither redis-cli nor valkey-cli in the container" >&2
exit 127"#;

/// `.dump` reads all in one transaction, but leaves two numbers out by which applications know the version of what they find.
/// `.backup` and `VACUUM INTO` cannot write to a pipe.
const SQLITE: &str = r#"command -v sqlite3 >/dev/null || { echo "there is no sqlite3 in the container" >&2; exit 127; }
[ -f "$1" ] || { echo "$1 is no file in the container" >&2; exit 1; }
exec sqlite3 -bail "$1" '.timeout 60000' "SELECT 'PRAGMA user_version=' || user_version || ';' FROM pragma_user_version" "SELECT 'PRAGMA application_id=' || application_id || ';' FROM pragma_application_id" .dump"#;

/// Which of a volume's files a dump stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Raw {
    /// All: the volume is the database's own.
    All,
    /// These paths below the volume's root, as borg's patterns; the others are saved beside the dump.
    Paths(Vec<String>),
}

/// The command that writes the dump to its standard output. `mount` is where the container sees the volume.
pub fn command(database: &Database, mount: &Path) -> Vec<String> {
    let shell = |text: &str| vec!["sh".to_owned(), "-c".to_owned(), text.to_owned()];
    match database {
        Database::Postgres => shell(POSTGRES),
        Database::Mysql => shell(&MYSQL.replace("TOOLS", "mysqldump mariadb-dump")),
        Database::Mariadb => shell(&MYSQL.replace("TOOLS", "mariadb-dump mysqldump")),
        Database::Mongodb => shell(MONGODB),
        Database::Redis => shell(REDIS),
        Database::Sqlite(file) => {
            let mut words = shell(SQLITE);
            words.extend(["sh".to_owned(), mount.join(file).to_string_lossy().into_owned()]);
            words
        }
        Database::Custom(text) => shell(text),
    }
}

/// What the dump is called in the archive.
pub fn name(database: &Database) -> &'static str {
    match database {
        Database::Postgres => "dump/postgres.sql",
        Database::Mysql => "dump/mysql.sql",
        Database::Mariadb => "dump/mariadb.sql",
        Database::Mongodb => "dump/mongodb.archive",
        Database::Redis => "dump/redis.rdb",
        Database::Sqlite(_) => "dump/sqlite.sql",
        Database::Custom(_) => "dump/custom",
    }
}

/// The database as people say it.
pub fn title(database: &Database) -> &'static str {
    match database {
        Database::Postgres => "PostgreSQL",
        Database::Mysql => "MySQL",
        Database::Mariadb => "MariaDB",
        Database::Mongodb => "MongoDB",
        Database::Redis => "Redis",
        Database::Sqlite(_) => "SQLite",
        Database::Custom(_) => "custom",
    }
}

/// What of a volume that the container sees at `mount` the dump stands for.
pub fn raw(database: &Database, mount: &Path, environment: &BTreeMap<String, String>) -> Raw {
    let data = match database {
        Database::Postgres => environment.get("PGDATA").map_or_else(|| PathBuf::from("/var/lib/postgresql/data"), PathBuf::from),
        Database::Mysql | Database::Mariadb => PathBuf::from("/var/lib/mysql"),
        Database::Mongodb => PathBuf::from("/data/db"),
        Database::Redis => return paths(["dump.rdb", "appendonly.aof", "appendonlydir"].map(str::to_owned)),
        Database::Sqlite(file) => return paths(["", "-wal", "-shm", "-journal"].map(|end| format!("{file}{end}"))),
        Database::Custom(_) => return paths([]),
    };
    if mount.starts_with(&data) {
        return Raw::All;
    }
    paths(data.strip_prefix(mount).ok().map(|inside| inside.to_string_lossy().into_owned()))
}

fn paths(all: impl IntoIterator<Item = String>) -> Raw {
    // Each as it is, not as a pattern.
    Raw::Paths(all.into_iter().map(|path| format!("pp:{path}")).collect())
}

/// What is remembered of a dump while it passes.
#[derive(Clone, Debug)]
pub struct Passing {
    database: Database,
    bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
    /// What may turn out to be none of the dump.
    held: Vec<u8>,
}

impl Passing {
    pub fn new(database: &Database) -> Passing {
        Passing { database: database.clone(), bytes: 0, head: Vec::new(), tail: Vec::new(), held: Vec::new() }
    }

    /// More of the command's output; what is to be passed on.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.database != Database::Redis {
            self.note(&chunk);
            return chunk;
        }
        self.held.extend_from_slice(&chunk);
        let passed: Vec<u8> = self.held.drain(..self.held.len().saturating_sub(MARK)).collect();
        self.note(&passed);
        passed.into()
    }

    fn note(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        self.head.extend_from_slice(&chunk[..chunk.len().min(HEAD.saturating_sub(self.head.len()))]);
        self.tail.extend_from_slice(&chunk[chunk.len().saturating_sub(TAIL)..]);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
    }

    /// The rest to be passed on, once the command ended with success.
    ///
    /// # Errors
    /// It is not a whole dump; why, as a sentence.
    pub fn finish(&mut self) -> Result<Bytes, String> {
        let held = std::mem::take(&mut self.held);
        // A server that sends as it goes ends with a mark, which redis-cli cannot cut off a pipe again.
        let is_mark = held.len() == MARK && held.iter().all(u8::is_ascii_hexdigit) && self.ends_as_redis();
        let rest = if is_mark { Bytes::new() } else { Bytes::from(held) };
        self.note(&rest);
        self.check().map(|()| rest)
    }

    /// The file ends with the operation 0xff and a checksum of eight bytes.
    fn ends_as_redis(&self) -> bool {
        self.tail.len().checked_sub(9).is_some_and(|place| self.tail[place] == 0xff)
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn check(&self) -> Result<(), String> {
        let title = title(&self.database);
        if self.bytes == 0 {
            return Err(format!("the {title} dump is empty"));
        }
        let ends = |mark: &str| match self.tail.windows(mark.len()).any(|window| window == mark.as_bytes()) {
            true => Ok(()),
            false => Err(format!("the {title} dump breaks off: `{mark}` is not at its end")),
        };
        let begins = |mark: &[u8]| match self.head.starts_with(mark) {
            true => Ok(()),
            false => Err(format!("what came is no {title} dump")),
        };
        match &self.database {
            Database::Postgres => ends("-- PostgreSQL database cluster dump complete"),
            Database::Mysql | Database::Mariadb => ends("-- Dump completed"),
            Database::Sqlite(_) => match self.tail.trim_ascii_end().ends_with(b"COMMIT;") {
                true => Ok(()),
                false => Err(format!("the {title} dump breaks off: `COMMIT;` is not its end")),
            },
            // mongodump/archive: the magic number 0x8199e26d, little-endian.
            Database::Mongodb => begins(&[0x6d, 0xe2, 0x99, 0x81]),
            Database::Redis => begins(b"REDIS").and_then(|()| match self.ends_as_redis() {
                true => Ok(()),
                false => Err(format!("the {title} dump breaks off: its end is not there")),
            }),
            Database::Custom(_) => Ok(()),
        }
    }
}

/// How a dump is loaded into a fresh container of the same image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    /// Of the fresh container: it has no network, so its password guards nothing.
    pub environment: Vec<String>,
    /// Ends with 0 once the server answers.
    pub ready: Vec<String>,
    /// Reads the dump from its standard input.
    pub load: Vec<String>,
    /// Writes a number that says how much is there.
    pub count: Vec<String>,
}

/// `None`: nobody but its owner knows (custom), or a server must be started with it (Redis: the file is its own data file).
pub fn load(database: &Database, environment: &BTreeMap<String, String>) -> Option<Load> {
    let shell = |text: &str| ["sh", "-c", text].map(str::to_owned).to_vec();
    let user = environment.get("POSTGRES_USER").map_or("postgres", String::as_str);
    let client = "$(command -v mariadb || command -v mysql)";
    Some(match database {
        Database::Postgres => Load {
            environment: vec!["POSTGRES_HOST_AUTH_METHOD=trust".into(), format!("POSTGRES_USER={user}")],
            // By TCP: while the image's start script prepares the database, the server listens on the socket only.
            ready: shell(r#"pg_isready -q -h 127.0.0.1 -U "${POSTGRES_USER:-postgres}""#),
            // The roles that are there already are no mistake; a dump that loads nothing is found by its count.
            load: shell(r#"exec psql -q -X -o /dev/null -U "${POSTGRES_USER:-postgres}" -d postgres"#),
            count: shell(
                r#"for database in $(psql -X -At -U "${POSTGRES_USER:-postgres}" -d postgres -c "SELECT datname FROM pg_database WHERE datallowconn"); do psql -X -At -U "${POSTGRES_USER:-postgres}" -d "$database" -c "SELECT count(*) FROM pg_class WHERE relkind IN ('r','p') AND relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname LIKE 'pg_%' OR nspname = 'information_schema')"; done | awk '{n += $1} END {print n + 0}'"#,
            ),
        },
        Database::Mysql | Database::Mariadb => Load {
            environment: vec!["MYSQL_ALLOW_EMPTY_PASSWORD=yes".into(), "MARIADB_ALLOW_EMPTY_ROOT_PASSWORD=yes".into()],
            ready: shell(&format!("{client} -uroot -h 127.0.0.1 -e 'SELECT 1' >/dev/null")),
            load: shell(&format!("exec {client} -uroot")),
            count: shell(&format!(
                "{client} -uroot -N -e \"SELECT count(*) FROM information_schema.tables WHERE table_schema NOT IN ('mysql','sys','information_schema','performance_schema')\""
            )),
        },
        Database::Mongodb => Load {
            environment: Vec::new(),
            ready: shell("$(command -v mongosh || command -v mongo) --quiet --eval 1 >/dev/null"),
            load: shell("exec mongorestore --archive --quiet"),
            count: shell(
                "$(command -v mongosh || command -v mongo) --quiet --eval 'let n = 0; db.adminCommand({listDatabases: 1}).databases.forEach(d => n += db.getSiblingDB(d.name).getCollectionNames().length); print(n)'",
            ),
        },
        Database::Sqlite(_) => Load {
            environment: Vec::new(),
            ready: shell("command -v sqlite3 >/dev/null"),
            load: shell("exec sqlite3 -bail /tmp/drill.db"),
            count: shell("sqlite3 /tmp/drill.db 'SELECT count(*) FROM sqlite_master'"),
        },
        Database::Redis | Database::Custom(_) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [fn() -> Database; 7] = [
        || Database::Postgres,
        || Database::Mysql,
        || Database::Mariadb,
        || Database::Mongodb,
        || Database::Redis,
        || Database::Sqlite("db/app.sqlite".into()),
        || Database::Custom("mydump --all".into()),
    ];

    #[test]
    fn no_command_is_made_of_what_somebody_wrote() {
        for database in ALL {
            let command = command(&database(), Path::new("/data"));
            assert_eq!(command[..2], ["sh", "-c"]);
            assert!(!command.iter().any(|word| word.contains("TOOLS")));
            assert!(!command[2].contains("app.sqlite"));
        }
        let sqlite = command(&Database::Sqlite("a b'\"$(x)".into()), Path::new("/data"));
        assert_eq!(sqlite[3..], ["sh", "/data/a b'\"$(x)"]);
        assert_eq!(command(&Database::Custom("x; y".into()), Path::new("/"))[2], "x; y");
    }

    #[test]
    fn what_a_dump_stands_for_is_left_out() {
        let none = BTreeMap::new();
        let paths = |list: &[&str]| Raw::Paths(list.iter().map(|path| format!("pp:{path}")).collect());
        let pgdata = |path: &str| BTreeMap::from([("PGDATA".to_owned(), path.to_owned())]);
        let postgres = |mount: &str, environment| raw(&Database::Postgres, Path::new(mount), &environment);
        assert_eq!(postgres("/var/lib/postgresql/data", none.clone()), Raw::All);
        assert_eq!(postgres("/var/lib/postgresql/data", pgdata("/var/lib/postgresql/data/pgdata")), paths(&["pgdata"]));
        assert_eq!(postgres("/var/lib/postgresql", pgdata("/var/lib/postgresql/18/docker")), paths(&["18/docker"]));
        assert_eq!(postgres("/srv/extra", none.clone()), paths(&[]), "another volume of the container");
        assert_eq!(postgres("/var/lib/postgresql/data/pg_wal", none.clone()), Raw::All, "a part of the data");
        assert_eq!(raw(&Database::Mariadb, Path::new("/var/lib/mysql"), &none), Raw::All);
        assert_eq!(raw(&Database::Redis, Path::new("/data"), &none), paths(&["dump.rdb", "appendonly.aof", "appendonlydir"]));
        assert_eq!(raw(&Database::Sqlite("a.db".into()), Path::new("/x"), &none), paths(&["a.db", "a.db-wal", "a.db-shm", "a.db-journal"]));
        assert_eq!(raw(&Database::Custom("x".into()), Path::new("/x"), &none), paths(&[]));
    }

    #[test]
    fn a_part_of_a_dump_is_none() {
        let whole: [(&str, &[u8]); 6] = [
            ("-- x\n-- PostgreSQL database cluster dump complete\n--\n\n\\unrestrict abc\n", b""),
            ("-- x\n-- Dump completed on 2026-11-23  2:00:07\n", b""),
            ("-- x\n-- Dump completed\n", b""),
            ("", b"\x6d\xe2\x99\x81rest"),
            ("", b"REDIS0010\xfa\xff12345678"),
            ("PRAGMA user_version=0;\nBEGIN TRANSACTION;\nCOMMIT;\n", b""),
        ];
        for (database, (text, bytes)) in ALL.iter().zip(whole) {
            let bytes = [text.as_bytes(), bytes].concat();
            let passed = |bytes: &[u8]| {
                let mut passing = Passing::new(&database());
                let mut out: Vec<u8> = bytes.chunks(3).flat_map(|chunk| passing.push(Bytes::copy_from_slice(chunk))).collect();
                out.extend(passing.finish()?);
                Ok::<_, String>(out)
            };
            assert_eq!(passed(&bytes).as_deref(), Ok(&bytes[..]), "{:?}", database());
            assert!(passed(&[]).expect_err("empty").contains("is empty"));
            if !matches!(database(), Database::Mongodb) {
                assert!(passed(&bytes[..bytes.len() / 3]).is_err(), "{:?}", database());
            }
            if database() == Database::Redis {
                let marked = [&bytes[..], b"07f24b266a6e44c761936a6c96a4e3c2046f7406"].concat();
                assert_eq!(passed(&marked).as_deref(), Ok(&bytes[..]), "the mark is none of it");
            }
        }
        let mut long = Passing::new(&Database::Mysql);
        long.push(vec![b'x'; 1 << 20].into());
        long.push(Bytes::from_static(b"-- Dump completed\n"));
        assert_eq!((long.finish(), long.bytes()), (Ok(Bytes::new()), (1 << 20) + 18));
    }

    proptest::proptest! {
        #[test]
        fn cuts_do_not_matter(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000), size in 1..2000usize) {
            for database in [Database::Redis, Database::Postgres] {
                let (mut pieces, mut whole) = (Passing::new(&database), Passing::new(&database));
                let mut out: Vec<u8> = bytes.chunks(size).flat_map(|chunk| pieces.push(Bytes::copy_from_slice(chunk))).collect();
                whole.push(Bytes::copy_from_slice(&bytes));
                let (one, other) = (pieces.finish(), whole.finish());
                proptest::prop_assert_eq!(&one, &other);
                proptest::prop_assert_eq!((pieces.bytes, &pieces.head, &pieces.tail), (whole.bytes, &whole.head, &whole.tail));
                if let Ok(rest) = one {
                    out.extend(rest);
                    proptest::prop_assert_eq!(&out, &bytes);
                }
            }
        }
    }
}
