-- Sessions, their leases, and what is known of evicted sessions.
--
-- Functions are called by programs of several versions during an upgrade: one
-- that was released never changes, and a new version gets a new name.
--
-- Locks are taken in this order, each until the end of the transaction: keys
-- of sessions in the order of their hashes, a model version, an owner, a row of
-- `session_totals`. Whoever holds one of them never waits for an earlier one.

CREATE TABLE sessions (
    owner text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    model_version bigint NOT NULL,
    digest bytea NOT NULL,
    -- 1: float32, 2: int8, as in the record.
    precision smallint NOT NULL,
    revision integer NOT NULL,
    position bigint NOT NULL,
    last_call_position bigint NOT NULL,
    created_ms bigint NOT NULL,
    -- On the clock of `session_clock`, in milliseconds.
    used_ms bigint NOT NULL,
    -- Grows with each commit of any session.
    used_order bigint NOT NULL,
    -- Random, new with each commit: names the content of the record.
    commit_id uuid NOT NULL,
    -- Space that counts towards the limit.
    bytes integer NOT NULL,
    record bytea NOT NULL,
    PRIMARY KEY (owner, id)
);
-- States do not compress.
ALTER TABLE sessions ALTER COLUMN record SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX sessions_used ON sessions (used_order);
CREATE INDEX sessions_owner_used ON sessions (owner, used_order);
CREATE INDEX sessions_model ON sessions (model, model_version);
CREATE SEQUENCE session_uses;

-- The right of one call to change one session, which exists or is to be
-- created. A row whose time is over counts as if it were not there.
CREATE TABLE session_leases (
    owner text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    token uuid NOT NULL UNIQUE,
    process uuid NOT NULL,
    replica text NOT NULL,
    until timestamptz NOT NULL,
    -- The session is to be created, and pins its model version already.
    is_new boolean NOT NULL,
    model text COLLATE "C",
    model_version bigint,
    PRIMARY KEY (owner, id)
) WITH (fillfactor = 50);

CREATE TABLE session_tombstones (
    owner text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    -- 1: idle, 2: capacity, 3: restart, 4: model gone, 5: damaged.
    reason smallint NOT NULL,
    used_order bigint NOT NULL,
    PRIMARY KEY (owner, id)
);
CREATE INDEX session_tombstones_order ON session_tombstones (used_order);

-- Model versions on which no session can start.
CREATE TABLE session_retired_models (
    model text COLLATE "C" NOT NULL,
    model_version bigint NOT NULL,
    PRIMARY KEY (model, model_version)
);

-- How many there are: the sums over all rows. Several rows, so that
-- transactions that create sessions do not wait for each other.
CREATE TABLE session_totals (
    shard integer PRIMARY KEY,
    sessions bigint NOT NULL DEFAULT 0,
    bytes bigint NOT NULL DEFAULT 0,
    tombstones bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 20);
INSERT INTO session_totals (shard) SELECT generate_series(0, 15);

-- The clock of idle time: counts while replicas run, and no jump of the
-- database's clock counts for more than a minute. `seen` is the last look at
-- that clock; NULL: it stands still.
CREATE TABLE session_clock (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    running_ms bigint NOT NULL DEFAULT 0,
    seen timestamptz DEFAULT clock_timestamp()
);
INSERT INTO session_clock DEFAULT VALUES;

CREATE FUNCTION session_now_ms() RETURNS bigint LANGUAGE sql VOLATILE AS $$
    SELECT running_ms + coalesce(
        least(greatest(extract(epoch FROM clock_timestamp() - seen) * 1000, 0), 60000), 0
    )::bigint FROM session_clock
$$;

CREATE FUNCTION session_add_totals(p_sessions bigint, p_bytes bigint, p_tombstones bigint)
RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE session_totals SET sessions = sessions + p_sessions, bytes = bytes + p_bytes,
        tombstones = tombstones + p_tombstones
    WHERE shard = pg_backend_pid() % 16
        AND (p_sessions <> 0 OR p_bytes <> 0 OR p_tombstones <> 0)
$$;

CREATE FUNCTION session_key_hash(p_owner text, p_id text) RETURNS integer
LANGUAGE sql IMMUTABLE AS $$ SELECT hashtext(p_owner || ' ' || p_id) $$;

-- Everything that changes a session or its lease takes this lock first, so that
-- each function below has a key for itself. The statements after it see all
-- that earlier holders committed (READ COMMITTED).
CREATE FUNCTION session_lock(p_owner text, p_id text) RETURNS void
LANGUAGE sql VOLATILE AS $$
    SELECT pg_advisory_xact_lock(1667787777, session_key_hash(p_owner, p_id))
$$;

-- Whether a session may be created: NULL, or why not.
CREATE FUNCTION session_admit(
    p_owner text, p_model text, p_model_version bigint, p_owner_limit bigint,
    p_max_sessions bigint
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_total bigint;
    v_new bigint;
    v_held bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(
        1667787778, session_key_hash(p_model, p_model_version::text));
    IF EXISTS (SELECT FROM session_retired_models r
            WHERE r.model = p_model AND r.model_version = p_model_version) THEN
        RETURN 'retired';
    END IF;
    IF p_owner_limit IS NOT NULL THEN
        PERFORM pg_advisory_xact_lock(1667787779, hashtext(p_owner));
        SELECT count(*) INTO v_total FROM (
            SELECT FROM sessions s WHERE s.owner = p_owner LIMIT p_owner_limit) AS counted;
        SELECT count(*) INTO v_new FROM session_leases l
            WHERE l.owner = p_owner AND l.is_new AND l.until > clock_timestamp();
        IF v_total + v_new >= p_owner_limit THEN
            RETURN 'owner_limit';
        END IF;
    END IF;
    SELECT sum(t.sessions) INTO v_total FROM session_totals t;
    -- There are fewer leases than that, which need not be counted until the
    -- limit is near.
    IF v_total + 65536 >= p_max_sessions THEN
        SELECT count(*) FILTER (WHERE l.is_new), count(*) FILTER (WHERE NOT l.is_new)
            INTO v_new, v_held FROM session_leases l WHERE l.until > clock_timestamp();
        -- Otherwise one that nobody uses is evicted.
        IF v_total + v_new >= p_max_sessions AND v_total <= v_held THEN
            RETURN 'full';
        END IF;
    END IF;
    RETURN NULL;
END $$;

-- Opens a session for a call: reads it and takes its lease, or reserves it.
-- Repeating it with the same token is safe.
CREATE FUNCTION session_open(
    p_owner text, p_id text, p_token uuid, p_process uuid, p_replica text, p_lease interval,
    p_expected bigint, p_cached uuid, p_max_idle_ms bigint, p_max_sessions bigint,
    p_owner_limit bigint, p_revision integer,
    -- What to create; NULL: the session must exist.
    p_model text, p_model_version bigint, p_new_revision integer,
    OUT o_outcome text, OUT o_replica text, OUT o_process uuid, OUT o_reason smallint,
    OUT o_model text, OUT o_model_version bigint, OUT o_digest bytea,
    OUT o_precision smallint, OUT o_revision integer, OUT o_position bigint,
    OUT o_last_call_position bigint, OUT o_created_ms bigint, OUT o_commit_id uuid,
    OUT o_record bytea
) LANGUAGE plpgsql AS $$
DECLARE
    v_lease session_leases;
    v_used_ms bigint;
    v_bytes bigint;
BEGIN
    PERFORM session_lock(p_owner, p_id);
    SELECT * INTO v_lease FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id;
    IF FOUND AND v_lease.token <> p_token AND v_lease.until > clock_timestamp() THEN
        o_outcome := 'busy';
        o_replica := v_lease.replica;
        o_process := v_lease.process;
        RETURN;
    END IF;
    SELECT s.model, s.model_version, s.digest, s.precision, s.revision, s.position,
            s.last_call_position, s.created_ms, s.commit_id, s.used_ms, s.bytes
        INTO o_model, o_model_version, o_digest, o_precision, o_revision, o_position,
            o_last_call_position, o_created_ms, o_commit_id, v_used_ms, v_bytes
        FROM sessions s WHERE s.owner = p_owner AND s.id = p_id;
    IF NOT FOUND THEN
        SELECT t.reason INTO o_reason FROM session_tombstones t
            WHERE t.owner = p_owner AND t.id = p_id;
        IF FOUND THEN
            o_outcome := 'evicted';
            RETURN;
        END IF;
        IF p_expected <> 0 THEN
            o_outcome := 'position';
            o_position := 0;
            o_last_call_position := 0;
            RETURN;
        END IF;
        IF p_model IS NULL THEN
            o_outcome := 'unknown';
            RETURN;
        END IF;
        IF p_new_revision <> p_revision THEN
            o_outcome := 'revision';
            o_revision := p_new_revision;
            RETURN;
        END IF;
        -- What is left of an earlier call.
        DELETE FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id;
        o_outcome := session_admit(
            p_owner, p_model, p_model_version, p_owner_limit, p_max_sessions);
        IF o_outcome IS NULL THEN
            o_outcome := 'new';
            INSERT INTO session_leases VALUES (p_owner, p_id, p_token, p_process, p_replica,
                clock_timestamp() + p_lease, true, p_model, p_model_version);
        END IF;
        RETURN;
    END IF;
    IF session_now_ms() - v_used_ms >= p_max_idle_ms THEN
        o_outcome := 'evicted';
        o_reason := 1;
        DELETE FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id;
        DELETE FROM sessions s WHERE s.owner = p_owner AND s.id = p_id;
        INSERT INTO session_tombstones VALUES (p_owner, p_id, 1, nextval('session_uses'));
        PERFORM session_add_totals(-1, -v_bytes, 1);
        RETURN;
    END IF;
    IF o_revision <> p_revision THEN
        o_outcome := 'revision';
        RETURN;
    END IF;
    IF p_expected <> o_position AND p_expected <> o_last_call_position THEN
        o_outcome := 'position';
        RETURN;
    END IF;
    INSERT INTO session_leases VALUES (p_owner, p_id, p_token, p_process, p_replica,
            clock_timestamp() + p_lease, false, NULL, NULL)
        ON CONFLICT (owner, id) DO UPDATE SET token = excluded.token,
            process = excluded.process, replica = excluded.replica, until = excluded.until,
            is_new = false, model = NULL, model_version = NULL;
    o_outcome := 'held';
    IF o_commit_id IS DISTINCT FROM p_cached THEN
        SELECT s.record INTO o_record FROM sessions s
            WHERE s.owner = p_owner AND s.id = p_id;
    END IF;
END $$;

-- Commits many sessions, each only if its lease has the token. The outcome of
-- each does not depend on the others. Repeating it after a lost response is
-- safe: a commit that was carried out is recognised by its id.
CREATE FUNCTION session_commit(
    p_owners text[], p_ids text[], p_tokens uuid[], p_commit_ids uuid[], p_models text[],
    p_model_versions bigint[], p_digests bytea[], p_precisions smallint[],
    p_revisions integer[], p_positions bigint[], p_last_call_positions bigint[],
    p_created_ms bigint[], p_bytes integer[], p_records bytea[]
) RETURNS TABLE (o_token uuid, o_outcome text, o_replica text) LANGUAGE plpgsql AS $$
DECLARE
    v_hash integer;
    v_at integer;
    v_now_ms bigint := session_now_ms();
    v_old_bytes bigint;
    v_commit_id uuid;
    v_sessions bigint := 0;
    v_bytes bigint := 0;
BEGIN
    FOR v_hash IN
        SELECT DISTINCT session_key_hash(k.owner, k.id) AS hash
            FROM unnest(p_owners, p_ids) AS k (owner, id) ORDER BY hash
    LOOP
        PERFORM pg_advisory_xact_lock(1667787777, v_hash);
    END LOOP;
    FOR v_at IN 1 .. cardinality(p_ids) LOOP
        o_token := p_tokens[v_at];
        o_replica := NULL;
        SELECT s.bytes, s.commit_id INTO v_old_bytes, v_commit_id FROM sessions s
            WHERE s.owner = p_owners[v_at] AND s.id = p_ids[v_at];
        DELETE FROM session_leases l WHERE l.owner = p_owners[v_at] AND l.id = p_ids[v_at]
            AND l.token = o_token;
        IF FOUND THEN
            o_outcome := 'committed';
            INSERT INTO sessions VALUES (p_owners[v_at], p_ids[v_at], p_models[v_at],
                    p_model_versions[v_at], p_digests[v_at], p_precisions[v_at],
                    p_revisions[v_at], p_positions[v_at], p_last_call_positions[v_at],
                    p_created_ms[v_at], v_now_ms, nextval('session_uses'),
                    p_commit_ids[v_at], p_bytes[v_at], p_records[v_at])
                ON CONFLICT (owner, id) DO UPDATE SET position = excluded.position,
                    last_call_position = excluded.last_call_position,
                    used_ms = excluded.used_ms, used_order = excluded.used_order,
                    commit_id = excluded.commit_id, bytes = excluded.bytes,
                    record = excluded.record;
            v_sessions := v_sessions + (v_commit_id IS NULL)::integer;
            v_bytes := v_bytes + p_bytes[v_at] - coalesce(v_old_bytes, 0);
        ELSIF v_commit_id = p_commit_ids[v_at] THEN
            o_outcome := 'committed';
        ELSE
            SELECT l.replica INTO o_replica FROM session_leases l
                WHERE l.owner = p_owners[v_at] AND l.id = p_ids[v_at];
            IF FOUND THEN
                o_outcome := 'fenced';
            ELSIF v_commit_id IS NOT NULL THEN
                o_outcome := 'replaced';
            ELSE
                o_outcome := 'deleted';
            END IF;
        END IF;
        RETURN NEXT;
    END LOOP;
    PERFORM session_add_totals(v_sessions, v_bytes, 0);
END $$;

-- Prolongs leases, and tells what became of those that are gone. A row that a
-- commit or a deletion is working on is left alone.
CREATE FUNCTION session_renew(
    p_owners text[], p_ids text[], p_tokens uuid[], p_lease interval
) RETURNS TABLE (o_token uuid, o_state text, o_replica text) LANGUAGE plpgsql AS $$
DECLARE
    v_renewed uuid[];
BEGIN
    WITH own AS (
        SELECT l.token FROM session_leases l WHERE l.token = ANY (p_tokens)
            FOR UPDATE SKIP LOCKED
    ), renewed AS (
        UPDATE session_leases l SET until = clock_timestamp() + p_lease
            FROM own WHERE l.token = own.token RETURNING l.token
    )
    SELECT coalesce(array_agg(renewed.token), '{}') INTO v_renewed FROM renewed;
    RETURN QUERY SELECT k.token,
            CASE WHEN k.token = ANY (v_renewed) THEN 'renewed'
                WHEN l.token = k.token THEN 'skipped'
                WHEN l.token IS NOT NULL OR s.id IS NOT NULL THEN 'fenced'
                ELSE 'deleted' END,
            CASE WHEN l.token <> k.token THEN l.replica END
        FROM unnest(p_owners, p_ids, p_tokens) AS k (owner, id, token)
        LEFT JOIN session_leases l ON l.owner = k.owner AND l.id = k.id
        LEFT JOIN sessions s ON s.owner = k.owner AND s.id = k.id;
END $$;

-- Creates a session that no call has made.
CREATE FUNCTION session_create(
    p_owner text, p_id text, p_commit_id uuid, p_model text, p_model_version bigint,
    p_digest bytea, p_precision smallint, p_revision integer, p_position bigint,
    p_last_call_position bigint, p_created_ms bigint, p_bytes integer, p_record bytea,
    p_owner_limit bigint, p_max_sessions bigint
) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    v_outcome text;
    v_found uuid;
    v_tombstones bigint;
BEGIN
    PERFORM session_lock(p_owner, p_id);
    SELECT s.commit_id INTO v_found FROM sessions s WHERE s.owner = p_owner AND s.id = p_id;
    IF FOUND THEN
        -- A repeat after a lost response.
        RETURN CASE WHEN v_found = p_commit_id THEN 'created' ELSE 'exists' END;
    END IF;
    IF EXISTS (SELECT FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id
            AND l.until > clock_timestamp()) THEN
        RETURN 'exists';
    END IF;
    DELETE FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id;
    v_outcome := session_admit(p_owner, p_model, p_model_version, p_owner_limit, p_max_sessions);
    IF v_outcome IS NOT NULL THEN
        RETURN v_outcome;
    END IF;
    DELETE FROM session_tombstones t WHERE t.owner = p_owner AND t.id = p_id;
    GET DIAGNOSTICS v_tombstones = ROW_COUNT;
    INSERT INTO sessions VALUES (p_owner, p_id, p_model, p_model_version, p_digest, p_precision,
        p_revision, p_position, p_last_call_position, p_created_ms, session_now_ms(),
        nextval('session_uses'), p_commit_id, p_bytes, p_record);
    PERFORM session_add_totals(1, p_bytes, -v_tombstones);
    RETURN 'created';
END $$;

-- Deletes a session with its lease, or its tombstone. Returns whether there was
-- anything.
CREATE FUNCTION session_delete(p_owner text, p_id text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_leases bigint;
    v_sessions bigint;
    v_bytes bigint;
    v_tombstones bigint;
BEGIN
    PERFORM session_lock(p_owner, p_id);
    DELETE FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id
        AND l.until > clock_timestamp();
    GET DIAGNOSTICS v_leases = ROW_COUNT;
    DELETE FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id;
    DELETE FROM sessions s WHERE s.owner = p_owner AND s.id = p_id RETURNING s.bytes INTO v_bytes;
    GET DIAGNOSTICS v_sessions = ROW_COUNT;
    DELETE FROM session_tombstones t WHERE t.owner = p_owner AND t.id = p_id;
    GET DIAGNOSTICS v_tombstones = ROW_COUNT;
    PERFORM session_add_totals(-v_sessions, -coalesce(v_bytes, 0), -v_tombstones);
    RETURN v_leases + v_sessions + v_tombstones > 0;
END $$;

-- Evicts a session that nobody uses and that was not used since `p_used_order`.
-- Returns its bytes; NULL if it stays. The caller adds the totals.
CREATE FUNCTION session_evict(p_owner text, p_id text, p_used_order bigint, p_reason smallint)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_bytes integer;
BEGIN
    -- Without waiting: whoever has the lock is using it.
    IF NOT pg_try_advisory_xact_lock(1667787777, session_key_hash(p_owner, p_id)) THEN
        RETURN NULL;
    END IF;
    DELETE FROM sessions s WHERE s.owner = p_owner AND s.id = p_id
        AND s.used_order = p_used_order AND NOT EXISTS (
            SELECT FROM session_leases l WHERE l.owner = p_owner AND l.id = p_id
                AND l.until > clock_timestamp())
        RETURNING s.bytes INTO v_bytes;
    IF FOUND THEN
        INSERT INTO session_tombstones VALUES
            (p_owner, p_id, p_reason, nextval('session_uses'));
    END IF;
    RETURN v_bytes;
END $$;

-- Evicts at most `p_batch` sessions of a model version that no call uses.
CREATE FUNCTION session_evict_model(p_model text, p_model_version bigint, p_batch integer)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_row record;
    v_evicted integer;
    v_sessions bigint := 0;
    v_bytes bigint := 0;
BEGIN
    FOR v_row IN SELECT s.owner, s.id, s.used_order FROM sessions s
            WHERE s.model = p_model AND s.model_version = p_model_version
                AND NOT EXISTS (SELECT FROM session_leases l WHERE l.owner = s.owner
                    AND l.id = s.id AND l.until > clock_timestamp())
            LIMIT p_batch
    LOOP
        v_evicted := session_evict(v_row.owner, v_row.id, v_row.used_order, 4::smallint);
        IF v_evicted IS NOT NULL THEN
            v_sessions := v_sessions + 1;
            v_bytes := v_bytes + v_evicted;
        END IF;
    END LOOP;
    PERFORM session_add_totals(-v_sessions, -v_bytes, v_sessions);
    RETURN v_sessions;
END $$;

-- Prevents new sessions on a model version, unless it has sessions that are not
-- allowed: 'none' are, those of 'owner', or 'all'. Returns the number of the
-- others.
CREATE FUNCTION session_retire_model(
    p_model text, p_model_version bigint, p_allowed text, p_owner text
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_sessions bigint := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(1667787778, session_key_hash(p_model, p_model_version::text));
    IF p_allowed <> 'all' THEN
        SELECT count(*) INTO v_sessions FROM (
            SELECT s.owner FROM sessions s
                WHERE s.model = p_model AND s.model_version = p_model_version
            UNION ALL
            SELECT l.owner FROM session_leases l WHERE l.is_new AND l.model = p_model
                AND l.model_version = p_model_version AND l.until > clock_timestamp()
        ) AS users WHERE p_allowed = 'none' OR users.owner <> p_owner;
    END IF;
    IF v_sessions = 0 THEN
        INSERT INTO session_retired_models VALUES (p_model, p_model_version)
            ON CONFLICT DO NOTHING;
    END IF;
    RETURN v_sessions;
END $$;

-- Moves the clock on, and evicts at most `p_batch` sessions by time and by the
-- limits. One replica at a time does so; the others return `o_ran` = false.
CREATE FUNCTION session_maintain(
    p_max_sessions bigint, p_max_bytes bigint, p_max_idle_ms bigint, p_max_tombstones bigint,
    p_batch integer,
    OUT o_ran boolean, OUT o_idle bigint, OUT o_capacity bigint
) LANGUAGE plpgsql AS $$
DECLARE
    v_row record;
    v_reason smallint;
    v_evicted integer;
    v_now_ms bigint;
    v_sessions bigint;
    v_bytes bigint;
    v_gone bigint := 0;
    v_gone_bytes bigint := 0;
    v_tombstones bigint := 0;
BEGIN
    o_idle := 0;
    o_capacity := 0;
    o_ran := pg_try_advisory_xact_lock(1667787780, 0);
    IF NOT o_ran THEN
        RETURN;
    END IF;
    v_now_ms := session_now_ms();
    UPDATE session_clock SET running_ms = v_now_ms,
        seen = CASE WHEN seen IS NOT NULL THEN clock_timestamp() END;
    DELETE FROM session_leases WHERE token IN (
        SELECT l.token FROM session_leases l WHERE l.until < clock_timestamp() - interval '1 minute'
            FOR UPDATE SKIP LOCKED);
    SELECT sum(t.sessions), sum(t.bytes), sum(t.tombstones)
        INTO v_sessions, v_bytes, v_tombstones FROM session_totals t;
    FOR v_row IN SELECT s.owner, s.id, s.used_order, s.used_ms FROM sessions s
            ORDER BY s.used_order LIMIT p_batch
    LOOP
        IF v_now_ms - v_row.used_ms >= p_max_idle_ms THEN
            v_reason := 1;
        ELSIF v_sessions - v_gone > p_max_sessions OR v_bytes - v_gone_bytes > p_max_bytes THEN
            v_reason := 2;
        ELSE
            EXIT;
        END IF;
        v_evicted := session_evict(v_row.owner, v_row.id, v_row.used_order, v_reason);
        IF v_evicted IS NOT NULL THEN
            v_gone := v_gone + 1;
            v_gone_bytes := v_gone_bytes + v_evicted;
            o_idle := o_idle + (v_reason = 1)::integer;
            o_capacity := o_capacity + (v_reason = 2)::integer;
        END IF;
    END LOOP;
    v_tombstones := v_tombstones + v_gone - p_max_tombstones;
    IF v_tombstones > 0 THEN
        DELETE FROM session_tombstones t WHERE (t.owner, t.id) IN (
            SELECT o.owner, o.id FROM session_tombstones o
                ORDER BY o.used_order LIMIT v_tombstones);
        GET DIAGNOSTICS v_tombstones = ROW_COUNT;
    ELSE
        v_tombstones := 0;
    END IF;
    PERFORM session_add_totals(-v_gone, -v_gone_bytes, v_gone - v_tombstones);
END $$;
