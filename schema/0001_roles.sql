-- Who may do what. Every file here may be run again at any time, by psql or any driver.
--
-- bridge_reader reads the WAL and the tables; it changes nothing. Its password is set by init.sh.
-- app_reader and app_writer are what the services act as: a table is readable or writable through
-- them when it is granted to these roles, and closed otherwise.
-- service_processor and service_reader are what the services log in as. All they may do is act as
-- app_writer and app_reader. They can log in once init.sh has given them a password.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['app_reader', 'app_writer'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- It exists, or another migration of this cluster was faster.
        END;
    END LOOP;
    BEGIN
        CREATE ROLE bridge_reader LOGIN REPLICATION;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        ALTER ROLE bridge_reader LOGIN REPLICATION;
    END;
    FOREACH role IN ARRAY ARRAY['service_processor', 'service_reader'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOINHERIT', role);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- It exists, and keeps its password.
        END;
    END LOOP;
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO bridge_reader, service_processor, service_reader',
                   current_database());
END
$$;

GRANT app_writer TO service_processor;
GRANT app_reader TO service_reader;

GRANT USAGE ON SCHEMA public TO bridge_reader, app_reader, app_writer;

-- Snapshots read with SELECT; tables made later by the role that runs this are included.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO bridge_reader;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO bridge_reader;
