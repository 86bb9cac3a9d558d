-- The tables the demo and the services' examples work on. Yours need nothing of these.

CREATE TABLE IF NOT EXISTS public.users (
    -- The client may choose it, so that a repeated request makes one row.
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name text NOT NULL,
    email text NOT NULL UNIQUE,
    bio text,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.orders (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES public.users (id),
    items jsonb NOT NULL DEFAULT '[]',
    total numeric(12, 2) NOT NULL CHECK (total >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS orders_user_id ON public.orders (user_id);

GRANT SELECT ON public.users, public.orders TO bridge_reader, app_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON public.users, public.orders TO app_writer;
