CREATE INDEX orders_new ON orders (id) WHERE state = 'new';
