#!/bin/sh
# Prepares a PostgreSQL database for the bridge and the services: checks its settings, applies
# schema/*.sql, sets the passwords of their roles, and tries the sessions they will open. Safe to
# repeat.
#
#   PG_PASSWORD=secret ./init.sh postgresql://postgres@localhost/postgres
#
# The argument (or DATABASE_URL, or psql's own PG* variables) names a superuser or the owner of the
# database. PG_PASSWORD is the password the bridge will log in with as bridge_reader, as in its own
# environment; PROCESSOR_PG_PASSWORD and READER_PG_PASSWORD are those of service_processor and
# service_reader. A role without one keeps what it has.
set -eu

fail() {
    printf 'init.sh: %s\n' "$1" >&2
    exit 1
}

case "${1:-}" in
    -h | --help)
        sed -n '2,11s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac

url=${1:-${DATABASE_URL:-}}
schema=$(dirname "$0")/schema

command -v psql >/dev/null || fail 'psql is missing; type: sudo apt-get install -y postgresql-client'

sql() {
    if [ -n "$url" ]; then
        psql -d "$url" -X -q -A -t -v ON_ERROR_STOP=1 "$@"
    else
        psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"
    fi
}

sql -c 'SELECT 1' >/dev/null || fail "cannot connect${url:+ with the URL given}; see the message above"

wal_level=$(sql -c 'SHOW wal_level')
[ "$wal_level" = logical ] || fail "wal_level is $wal_level and must be logical; type
  psql -c 'ALTER SYSTEM SET wal_level = logical'
restart PostgreSQL, and run this again"

free=$(sql -c "SELECT current_setting('max_replication_slots')::int - count(*) FROM pg_replication_slots")
[ "$free" -gt 0 ] || fail "all $(sql -c 'SHOW max_replication_slots') replication slots are taken; drop one with
  SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active
or raise max_replication_slots and restart PostgreSQL"

may=$(sql -c 'SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user')
[ "$may" = t ] || fail "role $(sql -c 'SELECT current_user') may not create roles; connect as a superuser"

for file in "$schema"/*.sql; do
    # One transaction per file: it is applied or it is not.
    sql -1 -c 'SET client_min_messages = warning' -f "$file" >/dev/null ||
        fail "$file was refused; nothing of it was applied"
    printf 'applied %s\n' "$(basename "$file")"
done

# Where psql has connected: the roles below are tried on the same server and database.
{
    read -r host
    read -r port
    read -r database
} <<PLACE
$(printf '\\echo :HOST\n\\echo :PORT\n\\echo :DBNAME\n' | sql)
PLACE

# set_password role password
set_password() (
    # Read by psql from its environment: an argument would be visible to every user of the machine.
    NEW_PASSWORD=$2
    export NEW_PASSWORD
    sql -v role="$1" >/dev/null <<'SQL'
\set password `printf %s "$NEW_PASSWORD"`
ALTER ROLE :"role" LOGIN PASSWORD :'password';
SQL
    printf 'password of %s set\n' "$1"
)

# try_as role password kind conninfo command: the session of a process, with its own role.
try_as() {
    PGHOST=$host PGPORT=$port PGDATABASE=$database PGUSER=$1 PGPASSWORD=$2 \
        psql -X -q -d "$4" -c "$5" >/dev/null ||
        fail "$1 cannot open a $3 session; if pg_hba.conf is the reason, add
  host $database $1 samenet scram-sha-256
and type  psql -c 'SELECT pg_reload_conf()'"
    printf '%s can open a %s session\n' "$1" "$3"
}

# let_in variable password role kind conninfo command
let_in() {
    if [ -n "$2" ]; then
        set_password "$3" "$2"
        try_as "$3" "$2" "$4" "$5" "$6"
    else
        printf '%s is not set: %s keeps the password it has\n' "$1" "$3"
    fi
}

let_in PG_PASSWORD "${PG_PASSWORD:-}" bridge_reader replication replication=database IDENTIFY_SYSTEM
let_in PROCESSOR_PG_PASSWORD "${PROCESSOR_PG_PASSWORD:-}" service_processor \
    writing application_name=init.sh 'SET ROLE app_writer'
let_in READER_PG_PASSWORD "${READER_PG_PASSWORD:-}" service_reader \
    reading application_name=init.sh 'SET ROLE app_reader'

published=$(sql -c "SELECT string_agg(format('%I.%I', schemaname, tablename), ', ' ORDER BY schemaname, tablename) FROM pg_publication_tables WHERE pubname = 'cdc_pub'")
printf 'publication cdc_pub: %s\n' "${published:-no tables yet}"

keyless=$(sql -c "
    SELECT string_agg(t.schemaname || '.' || t.tablename, ', ')
    FROM pg_publication_tables t
    JOIN pg_class c ON c.oid = format('%I.%I', t.schemaname, t.tablename)::regclass
    WHERE t.pubname = 'cdc_pub'
      AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (
          SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary))")
[ -z "$keyless" ] || printf '%s\n' \
    "without a key, so UPDATE and DELETE on them fail now: $keyless; for each of them type" \
    "  ALTER TABLE name REPLICA IDENTITY FULL;  -- or give it a primary key" >&2

printf 'ready\n'
