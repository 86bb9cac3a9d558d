-- What became of every write that came through the gateway, and the functions that may say so.
--
-- The processor works as role app_writer, which may write the tables it was granted and nothing
-- here: the functions below are the only door to write_operations. Nobody but the operator reads
-- the table itself; operation_status() shows one row to who knows its id.

CREATE TABLE IF NOT EXISTS public.write_operations (
    operation_id uuid PRIMARY KEY,
    entity_table text NOT NULL,
    entity_id uuid,
    op_type text NOT NULL,
    status text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'completed', 'failed')),
    -- {"code", "constraint", "message"} as JSON text: it reaches CDC consumers as it is.
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz
);

-- The primary key as text: entity_id holds it only where it is a UUID.
ALTER TABLE public.write_operations ADD COLUMN IF NOT EXISTS entity_key text;
ALTER TABLE public.write_operations ADD COLUMN IF NOT EXISTS body_sha256 text;
ALTER TABLE public.write_operations ADD COLUMN IF NOT EXISTS principal text;
-- W3C trace context of the request: reaches CDC consumers where this table is published.
ALTER TABLE public.write_operations ADD COLUMN IF NOT EXISTS traceparent text;

-- For prune_operations().
CREATE INDEX IF NOT EXISTS write_operations_completed_at ON public.write_operations (completed_at);

REVOKE ALL ON public.write_operations FROM PUBLIC, app_reader, app_writer;

CREATE OR REPLACE FUNCTION public.uuid_or_null(value text) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE
        WHEN value ~* '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$' THEN value::uuid
    END;

-- The functions of whole batches take one array of each column: JSON costs PostgreSQL twice as much to read. They are in
-- PL/pgSQL because it keeps their plans for the session.

-- Records operations as completed, before the rows they write and in the same transaction. Returns
-- the ids that were not recorded yet: only these may be applied.
CREATE OR REPLACE FUNCTION public.claim_operations(
    ids uuid[], target text, kind text, keys text[], uuid_keys uuid[], accepted timestamptz[],
    sha256s text[], principals text[], traceparents text[]) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    RETURN QUERY
    INSERT INTO public.write_operations AS known
        (operation_id, entity_table, entity_id, entity_key, op_type, status, created_at,
         completed_at, body_sha256, principal, traceparent)
    SELECT batch.id, target, batch.uuid_key, batch.key, kind, 'completed',
           coalesce(batch.accepted, clock_timestamp()), clock_timestamp(), batch.sha256,
           batch.principal, batch.traceparent
    FROM unnest(ids, keys, uuid_keys, accepted, sha256s, principals, traceparents)
        AS batch(id, key, uuid_key, accepted, sha256, principal, traceparent)
    ON CONFLICT (operation_id) DO UPDATE
        SET status = 'completed', completed_at = excluded.completed_at,
            entity_id = excluded.entity_id, entity_key = excluded.entity_key
        WHERE known.status = 'pending'
    RETURNING known.operation_id;
END
$$;

-- Those of the operations that have no outcome yet: only these may be applied.
CREATE OR REPLACE FUNCTION public.open_operations(ids uuid[]) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    RETURN QUERY
    SELECT id
    FROM unnest(ids) AS id
    WHERE NOT EXISTS (
        SELECT FROM public.write_operations AS known
        WHERE known.operation_id = id AND known.status <> 'pending');
END
$$;

-- Records the open operations after the rows they write, in the same transaction: completed where done names them,
-- else failed for this reason. One row change each, so that CDC never shows an outcome that is not the last. Returns
-- the failed ones. An outcome that somebody else recorded meanwhile is an error, and nothing is applied.
CREATE OR REPLACE FUNCTION public.close_operations(
    ids uuid[], target text, kind text, keys text[], uuid_keys uuid[], accepted timestamptz[],
    sha256s text[], principals text[], traceparents text[],
    open uuid[], done uuid[], reason text) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    DELETE FROM public.write_operations AS known
    WHERE known.operation_id = ANY (open) AND known.status = 'pending';
    RETURN QUERY
    WITH recorded AS (
        INSERT INTO public.write_operations AS known
            (operation_id, entity_table, entity_id, entity_key, op_type, status, error,
             created_at, completed_at, body_sha256, principal, traceparent)
        SELECT batch.id, target, batch.uuid_key, batch.key, kind,
               CASE WHEN done_id IS NULL THEN 'failed' ELSE 'completed' END,
               CASE WHEN done_id IS NULL THEN reason END,
               coalesce(batch.accepted, clock_timestamp()), clock_timestamp(), batch.sha256,
               batch.principal, batch.traceparent
        FROM unnest(ids, keys, uuid_keys, accepted, sha256s, principals, traceparents)
            AS batch(id, key, uuid_key, accepted, sha256, principal, traceparent)
        JOIN unnest(open) AS open_id ON open_id = batch.id
        LEFT JOIN unnest(done) AS done_id ON done_id = batch.id
        RETURNING known.operation_id, known.status
    )
    SELECT recorded.operation_id FROM recorded WHERE recorded.status = 'failed';
END
$$;

-- Records one operation as failed. One that has an outcome already keeps it.
CREATE OR REPLACE FUNCTION public.fail_operation(operation jsonb, reason text) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
    INSERT INTO public.write_operations AS known
        (operation_id, entity_table, entity_id, entity_key, op_type, status, error, created_at,
         completed_at, body_sha256, principal, traceparent)
    SELECT operation_id, entity_table, public.uuid_or_null(entity_key), entity_key, op_type,
           'failed', reason, coalesce(accepted_at, clock_timestamp()), clock_timestamp(),
           body_sha256, principal, traceparent
    FROM jsonb_to_record(operation) AS operation(
        operation_id uuid, entity_table text, entity_key text, op_type text,
        accepted_at timestamptz, body_sha256 text, principal text, traceparent text)
    ON CONFLICT (operation_id) DO UPDATE
        SET status = 'failed', error = excluded.error, completed_at = excluded.completed_at
        WHERE known.status = 'pending'
$$;

-- Forgets a failed operation, so that its dead letter can be replayed. False: it did not fail.
CREATE OR REPLACE FUNCTION public.forget_failed_operation(operation uuid) RETURNS boolean
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
    WITH gone AS (
        DELETE FROM public.write_operations
        WHERE operation_id = operation AND status = 'failed'
        RETURNING operation_id
    )
    SELECT EXISTS (SELECT FROM gone)
        OR NOT EXISTS (SELECT FROM public.write_operations WHERE operation_id = operation)
$$;

-- Deletes at most `at_most` of the outcomes older than `older_than`; returns how many.
CREATE OR REPLACE FUNCTION public.prune_operations(older_than interval, at_most integer)
    RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
    WITH old AS (
        SELECT operation_id FROM public.write_operations
        WHERE completed_at < clock_timestamp() - older_than
        ORDER BY completed_at
        LIMIT at_most
        FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM public.write_operations
        WHERE operation_id IN (SELECT operation_id FROM old)
        RETURNING operation_id
    )
    SELECT count(*) FROM gone
$$;

-- One operation for who knows its id. No row: never recorded (it may still be on its way).
CREATE OR REPLACE FUNCTION public.operation_status(operation uuid)
    RETURNS TABLE (status text, entity_table text, entity_key text, error text,
                   accepted_at timestamptz, completed_at timestamptz, principal text)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
    SELECT status, entity_table, coalesce(entity_key, entity_id::text), error, created_at,
           completed_at, principal
    FROM public.write_operations
    WHERE operation_id = operation
$$;

REVOKE EXECUTE ON FUNCTION
    public.claim_operations(
        uuid[], text, text, text[], uuid[], timestamptz[], text[], text[], text[]),
    public.open_operations(uuid[]),
    public.close_operations(
        uuid[], text, text, text[], uuid[], timestamptz[], text[], text[], text[],
        uuid[], uuid[], text),
    public.fail_operation(jsonb, text),
    public.forget_failed_operation(uuid), public.prune_operations(interval, integer),
    public.operation_status(uuid)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    public.claim_operations(
        uuid[], text, text, text[], uuid[], timestamptz[], text[], text[], text[]),
    public.open_operations(uuid[]),
    public.close_operations(
        uuid[], text, text, text[], uuid[], timestamptz[], text[], text[], text[],
        uuid[], uuid[], text),
    public.fail_operation(jsonb, text),
    public.forget_failed_operation(uuid), public.prune_operations(interval, integer)
    TO app_writer;
GRANT EXECUTE ON FUNCTION public.operation_status(uuid) TO app_reader;

-- Outcomes travel like every other change: who waits for one hears of it in the CDC stream.
DO $$
BEGIN
    ALTER PUBLICATION cdc_pub ADD TABLE public.write_operations;
EXCEPTION WHEN duplicate_object OR undefined_object THEN
    NULL; -- It is in, or the publication has another name.
END
$$;
