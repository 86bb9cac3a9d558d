#!/bin/sh
# Prepares a PostgreSQL database for the bridge: checks its settings, applies schema/*.sql, sets
# the password of role bridge_reader, and tries the session the bridge will open. Safe to repeat.
#
#   PG_PASSWORD=secret ./init.sh postgresql://postgres@localhost/postgres
#
# The argument (or DATABASE_URL, or psql's own PG* variables) names a superuser or the owner of the
# database; PG_PASSWORD is the password the bridge will log in with, as in its own environment.
set -eu

fail() {
    printf 'init.sh: %s\n' "$1" >&2
    exit 1
}

case "${1:-}" in
    -h | --help)
        sed -n '2,8s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
esac

url=${1:-${DATABASE_URL:-}}
schema=$(dirname "$0")/schema
role=bridge_reader

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

if [ -n "${PG_PASSWORD:-}" ]; then
    # Read by psql from its environment: an argument would be visible to every user of the machine.
    sql >/dev/null <<SQL
\\set password \`printf %s "\$PG_PASSWORD"\`
ALTER ROLE $role PASSWORD :'password';
SQL
    printf 'password of %s set\n' "$role"

    # The session of the bridge: same server and database, its own role, replication mode.
    {
        read -r host
        read -r port
        read -r database
    } <<PLACE
$(printf '\\echo :HOST\n\\echo :PORT\n\\echo :DBNAME\n' | sql)
PLACE
    PGHOST=$host PGPORT=$port PGDATABASE=$database PGUSER=$role PGPASSWORD=$PG_PASSWORD \
        psql -X -q -d replication=database -c IDENTIFY_SYSTEM >/dev/null ||
        fail "$role cannot open a replication session; if pg_hba.conf is the reason, add
  host $database $role samenet scram-sha-256
and type  psql -c 'SELECT pg_reload_conf()'"
    printf '%s can open a replication session\n' "$role"
else
    printf 'PG_PASSWORD is not set: %s keeps the password it has\n' "$role"
fi

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
