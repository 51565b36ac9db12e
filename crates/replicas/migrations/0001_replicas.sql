-- The replicas that use this database. A row belongs to one process.
CREATE TABLE replicas (
    -- Random, new for each process: two processes may have the same name.
    process uuid PRIMARY KEY,
    name text NOT NULL,
    -- Where clients reach it, for people.
    address text NOT NULL,
    -- Version of the program.
    version text NOT NULL,
    -- Its default precision of generation.
    precision text NOT NULL,
    started timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat timestamptz NOT NULL DEFAULT clock_timestamp(),
    generations_running integer NOT NULL,
    -- Id of the training that it runs.
    training text
);
