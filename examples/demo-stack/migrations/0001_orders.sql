CREATE TABLE orders (
    id bigserial PRIMARY KEY,
    item text NOT NULL,
    quantity integer NOT NULL CHECK (quantity > 0),
    total numeric(10, 2),
    state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'priced')),
    created_at timestamptz NOT NULL DEFAULT now()
);
