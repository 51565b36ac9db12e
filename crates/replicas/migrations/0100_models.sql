-- Counts the changes of model versions. Its row is locked until a change is
-- committed, so a higher revision is never visible before a lower one.
CREATE TABLE model_revision (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    revision bigint NOT NULL
);
INSERT INTO model_revision (revision) VALUES (0);

CREATE TABLE model_names (
    name text PRIMARY KEY,
    -- The principal that published the first version; null until then.
    owner text,
    -- Only ever increases.
    last_version bigint NOT NULL
);

CREATE TABLE model_versions (
    name text NOT NULL REFERENCES model_names,
    version bigint NOT NULL,
    -- reserved: its files are being stored. published. removed.
    state text NOT NULL,
    -- Whether there may be files in the object store.
    has_files boolean NOT NULL DEFAULT true,
    -- Revision of its last change.
    revision bigint NOT NULL DEFAULT 0,
    sha256 bytea,
    bytes bigint,
    manifest text,
    -- What int8 costs; null if it was not measured yet.
    quantisation text,
    -- The training that published it, if one did.
    training_id text,
    reserved_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, version)
);
CREATE INDEX model_versions_revision ON model_versions (revision);
-- A training publishes at most one version, whoever runs it.
CREATE UNIQUE INDEX model_versions_training ON model_versions (training_id)
    WHERE state <> 'reserved';
