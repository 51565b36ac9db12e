-- Counts the changes of trainings and the additions of events. Its row is
-- locked until a change is committed, so a higher revision is never visible
-- before a lower one.
CREATE TABLE training_revision (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    revision bigint NOT NULL
);
INSERT INTO training_revision (revision) VALUES (0);

CREATE TABLE trainings (
    id text PRIMARY KEY,
    owner text NOT NULL,
    -- What does not change; empty if the training was deleted.
    metadata text NOT NULL,
    -- queued, running, ended or deleted.
    state text NOT NULL,
    queued_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Number of claims so far: what was claimed under an older one has no effect.
    epoch bigint NOT NULL DEFAULT 0,
    -- The replica that runs it, and until when it has to renew its claim.
    replica text,
    lease_until timestamptz,
    cancel_requested boolean NOT NULL DEFAULT false,
    -- Keys in the object store.
    checkpoint text,
    checkpoint_step bigint,
    previous_checkpoint text,
    -- Revision of its last change.
    revision bigint NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX trainings_revision ON trainings (revision);
CREATE INDEX trainings_unfinished ON trainings (queued_at) WHERE state IN ('queued', 'running');

CREATE TABLE training_events (
    training text NOT NULL REFERENCES trainings ON DELETE CASCADE,
    sequence bigint NOT NULL,
    event text NOT NULL,
    revision bigint NOT NULL,
    PRIMARY KEY (training, sequence)
);
CREATE INDEX training_events_revision ON training_events (revision);
