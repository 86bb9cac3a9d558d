-- Optional: makes DDL visible to the bridge ahead of the next row. Without it the bridge sees a new
-- shape with the first row that has it, and looks at the catalogue every few seconds; with it a change is
-- in KV bucket `schemas`, and told on `schema.changed.*`, as soon as its transaction is read from WAL. And
-- only with it does the bridge notice that rows were rewritten where the shape stays what it was, as with
-- ALTER TABLE t ALTER c TYPE text USING upper(c).
--
-- Needs a superuser. init.sh does not apply it; to remove it:
--   DROP EVENT TRIGGER bridge_ddl; DROP EVENT TRIGGER bridge_drop; DROP EVENT TRIGGER bridge_rewrite;
--   DROP FUNCTION public.bridge_ddl_message(), public.bridge_rewrite_message();

CREATE OR REPLACE FUNCTION public.bridge_ddl_message() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    -- Transactional: it reaches the bridge when, and only when, the DDL commits.
    PERFORM pg_logical_emit_message(true, 'bridge.ddl', tg_tag);
END
$$;

DROP EVENT TRIGGER IF EXISTS bridge_ddl;
CREATE EVENT TRIGGER bridge_ddl ON ddl_command_end
    WHEN TAG IN ('ALTER TABLE', 'ALTER TYPE', 'ALTER PUBLICATION', 'CREATE PUBLICATION', 'ALTER SCHEMA', 'GRANT', 'REVOKE')
    EXECUTE FUNCTION public.bridge_ddl_message();

DROP EVENT TRIGGER IF EXISTS bridge_drop;
CREATE EVENT TRIGGER bridge_drop ON sql_drop EXECUTE FUNCTION public.bridge_ddl_message();

CREATE OR REPLACE FUNCTION public.bridge_rewrite_message() RETURNS event_trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    -- 2: new values for a column; 4: a column of another type. The rest keeps every value.
    IF pg_event_trigger_table_rewrite_reason() & 6 <> 0 THEN
        -- Of a partition, also the tables above it: one of them may be the published one.
        PERFORM pg_logical_emit_message(true, 'bridge.ddl', 'rewrite ' || relid::oid)
        FROM (SELECT pg_event_trigger_table_rewrite_oid()::regclass AS relid
            UNION SELECT relid FROM pg_partition_ancestors(pg_event_trigger_table_rewrite_oid())) AS rewritten;
    END IF;
END
$$;

DROP EVENT TRIGGER IF EXISTS bridge_rewrite;
CREATE EVENT TRIGGER bridge_rewrite ON table_rewrite EXECUTE FUNCTION public.bridge_rewrite_message();
