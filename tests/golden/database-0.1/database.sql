--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: session_add_totals(bigint, bigint, bigint); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_add_totals(p_sessions bigint, p_bytes bigint, p_tombstones bigint) RETURNS void
    LANGUAGE sql
    AS $$
    UPDATE session_totals SET sessions = sessions + p_sessions, bytes = bytes + p_bytes,
        tombstones = tombstones + p_tombstones
    WHERE shard = pg_backend_pid() % 16
        AND (p_sessions <> 0 OR p_bytes <> 0 OR p_tombstones <> 0)
$$;


--
-- Name: session_admit(text, text, bigint, bigint, bigint); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_admit(p_owner text, p_model text, p_model_version bigint, p_owner_limit bigint, p_max_sessions bigint) RETURNS text
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_commit(text[], text[], uuid[], uuid[], text[], bigint[], bytea[], smallint[], integer[], bigint[], bigint[], bigint[], integer[], bytea[]); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_commit(p_owners text[], p_ids text[], p_tokens uuid[], p_commit_ids uuid[], p_models text[], p_model_versions bigint[], p_digests bytea[], p_precisions smallint[], p_revisions integer[], p_positions bigint[], p_last_call_positions bigint[], p_created_ms bigint[], p_bytes integer[], p_records bytea[]) RETURNS TABLE(o_token uuid, o_outcome text, o_replica text)
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_create(text, text, uuid, text, bigint, bytea, smallint, integer, bigint, bigint, bigint, integer, bytea, bigint, bigint); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_create(p_owner text, p_id text, p_commit_id uuid, p_model text, p_model_version bigint, p_digest bytea, p_precision smallint, p_revision integer, p_position bigint, p_last_call_position bigint, p_created_ms bigint, p_bytes integer, p_record bytea, p_owner_limit bigint, p_max_sessions bigint) RETURNS text
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_delete(text, text); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_delete(p_owner text, p_id text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_evict(text, text, bigint, smallint); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_evict(p_owner text, p_id text, p_used_order bigint, p_reason smallint) RETURNS integer
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_evict_model(text, bigint, integer); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_evict_model(p_model text, p_model_version bigint, p_batch integer) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_key_hash(text, text); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_key_hash(p_owner text, p_id text) RETURNS integer
    LANGUAGE sql IMMUTABLE
    AS $$ SELECT hashtext(p_owner || ' ' || p_id) $$;


--
-- Name: session_lock(text, text); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_lock(p_owner text, p_id text) RETURNS void
    LANGUAGE sql
    AS $$
    SELECT pg_advisory_xact_lock(1667787777, session_key_hash(p_owner, p_id))
$$;


--
-- Name: session_maintain(bigint, bigint, bigint, bigint, integer); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_maintain(p_max_sessions bigint, p_max_bytes bigint, p_max_idle_ms bigint, p_max_tombstones bigint, p_batch integer, OUT o_ran boolean, OUT o_idle bigint, OUT o_capacity bigint) RETURNS record
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_now_ms(); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_now_ms() RETURNS bigint
    LANGUAGE sql
    AS $$
    SELECT running_ms + coalesce(
        least(greatest(extract(epoch FROM clock_timestamp() - seen) * 1000, 0), 60000), 0
    )::bigint FROM session_clock
$$;


--
-- Name: session_open(text, text, uuid, uuid, text, interval, bigint, uuid, bigint, bigint, bigint, integer, text, bigint, integer); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_open(p_owner text, p_id text, p_token uuid, p_process uuid, p_replica text, p_lease interval, p_expected bigint, p_cached uuid, p_max_idle_ms bigint, p_max_sessions bigint, p_owner_limit bigint, p_revision integer, p_model text, p_model_version bigint, p_new_revision integer, OUT o_outcome text, OUT o_replica text, OUT o_process uuid, OUT o_reason smallint, OUT o_model text, OUT o_model_version bigint, OUT o_digest bytea, OUT o_precision smallint, OUT o_revision integer, OUT o_position bigint, OUT o_last_call_position bigint, OUT o_created_ms bigint, OUT o_commit_id uuid, OUT o_record bytea) RETURNS record
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_renew(text[], text[], uuid[], interval); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_renew(p_owners text[], p_ids text[], p_tokens uuid[], p_lease interval) RETURNS TABLE(o_token uuid, o_state text, o_replica text)
    LANGUAGE plpgsql
    AS $$
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


--
-- Name: session_retire_model(text, bigint, text, text); Type: FUNCTION; Schema: public; Owner: -
--

CREATE FUNCTION public.session_retire_model(p_model text, p_model_version bigint, p_allowed text, p_owner text) RETURNS bigint
    LANGUAGE plpgsql
    AS $$
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


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: _sqlx_migrations; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public._sqlx_migrations (
    version bigint NOT NULL,
    description text NOT NULL,
    installed_on timestamp with time zone DEFAULT now() NOT NULL,
    success boolean NOT NULL,
    checksum bytea NOT NULL,
    execution_time bigint NOT NULL
);


--
-- Name: model_names; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.model_names (
    name text NOT NULL,
    owner text,
    last_version bigint NOT NULL
);


--
-- Name: model_revision; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.model_revision (
    single boolean DEFAULT true NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT model_revision_single_check CHECK (single)
);


--
-- Name: model_versions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.model_versions (
    name text NOT NULL,
    version bigint NOT NULL,
    state text NOT NULL,
    has_files boolean DEFAULT true NOT NULL,
    revision bigint DEFAULT 0 NOT NULL,
    sha256 bytea,
    bytes bigint,
    manifest text,
    quantisation text,
    training_id text,
    reserved_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: replicas; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.replicas (
    process uuid NOT NULL,
    name text NOT NULL,
    address text NOT NULL,
    version text NOT NULL,
    "precision" text NOT NULL,
    started timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    heartbeat timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    generations_running integer NOT NULL,
    training text
);


--
-- Name: session_clock; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.session_clock (
    only_row boolean DEFAULT true NOT NULL,
    running_ms bigint DEFAULT 0 NOT NULL,
    seen timestamp with time zone DEFAULT clock_timestamp(),
    CONSTRAINT session_clock_only_row_check CHECK (only_row)
);


--
-- Name: session_leases; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.session_leases (
    owner text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    token uuid NOT NULL,
    process uuid NOT NULL,
    replica text NOT NULL,
    until timestamp with time zone NOT NULL,
    is_new boolean NOT NULL,
    model text COLLATE pg_catalog."C",
    model_version bigint
)
WITH (fillfactor='50');


--
-- Name: session_retired_models; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.session_retired_models (
    model text NOT NULL COLLATE pg_catalog."C",
    model_version bigint NOT NULL
);


--
-- Name: session_tombstones; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.session_tombstones (
    owner text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    reason smallint NOT NULL,
    used_order bigint NOT NULL
);


--
-- Name: session_totals; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.session_totals (
    shard integer NOT NULL,
    sessions bigint DEFAULT 0 NOT NULL,
    bytes bigint DEFAULT 0 NOT NULL,
    tombstones bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='20');


--
-- Name: session_uses; Type: SEQUENCE; Schema: public; Owner: -
--

CREATE SEQUENCE public.session_uses
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


--
-- Name: sessions; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.sessions (
    owner text NOT NULL COLLATE pg_catalog."C",
    id text NOT NULL COLLATE pg_catalog."C",
    model text NOT NULL COLLATE pg_catalog."C",
    model_version bigint NOT NULL,
    digest bytea NOT NULL,
    "precision" smallint NOT NULL,
    revision integer NOT NULL,
    "position" bigint NOT NULL,
    last_call_position bigint NOT NULL,
    created_ms bigint NOT NULL,
    used_ms bigint NOT NULL,
    used_order bigint NOT NULL,
    commit_id uuid NOT NULL,
    bytes integer NOT NULL,
    record bytea NOT NULL
);
ALTER TABLE ONLY public.sessions ALTER COLUMN record SET STORAGE EXTERNAL;


--
-- Name: training_events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.training_events (
    training text NOT NULL,
    sequence bigint NOT NULL,
    event text NOT NULL,
    revision bigint NOT NULL
);


--
-- Name: training_revision; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.training_revision (
    single boolean DEFAULT true NOT NULL,
    revision bigint NOT NULL,
    CONSTRAINT training_revision_single_check CHECK (single)
);


--
-- Name: trainings; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.trainings (
    id text NOT NULL,
    owner text NOT NULL,
    metadata text NOT NULL,
    state text NOT NULL,
    queued_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL,
    replica text,
    lease_until timestamp with time zone,
    cancel_requested boolean DEFAULT false NOT NULL,
    checkpoint text,
    checkpoint_step bigint,
    previous_checkpoint text,
    revision bigint NOT NULL,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Data for Name: _sqlx_migrations; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public._sqlx_migrations VALUES (1, 'replicas', '2026-11-27 09:49:05.035574+00', true, '\x8a1c09e8531760ef475a34837402cd218cc11141102a35fadbe8f3b224da6b2929a3a7631c904fe33af269e2976b267a', 296002153);
INSERT INTO public._sqlx_migrations VALUES (2, 'sessions', '2026-11-27 09:49:05.035574+00', true, '\x27899105e7b97678ff67e3db4841988fe810d106e73e619199caa0f0ad631c5f9993a988a7d7f0e8ea028bb69d711b0b', 1188367547);
INSERT INTO public._sqlx_migrations VALUES (100, 'models', '2026-11-27 09:49:05.035574+00', true, '\x6f3fe2f2e9534f8b1d7b1ef22db411369dd62117604587ef8795519560069a5e0393e0807dbfbce529ae2791a0cb72b6', 592060161);
INSERT INTO public._sqlx_migrations VALUES (101, 'trainings', '2026-11-27 09:49:05.035574+00', true, '\xcf58bd46770112792157a020059405cf15357f87739fc04b6778d3751b38c8d448c0f0f55b4a03f91bba78dd7a4736cd', 659105619);


--
-- Data for Name: model_names; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.model_names VALUES ('verse', 'admin', 1);
INSERT INTO public.model_names VALUES ('trained', 'admin', 1);


--
-- Data for Name: model_revision; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.model_revision VALUES (true, 2);


--
-- Data for Name: model_versions; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.model_versions VALUES ('verse', 1, 'published', true, 1, '\x605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb', 20116, '{
  "format": 1,
  "sha256": "605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb",
  "bytes": 20116,
  "architecture": {
    "vocabulary_size": 17,
    "hidden_size": 16,
    "num_layers": 2
  },
  "vocabulary": "\n Tabceimnopqrsuv",
  "facts": {
    "recipe": "fast",
    "epochs": 1,
    "steps": 16,
    "corpus_chars": 3001,
    "corpus_sha256": "f49b9306ab646b910d330f2fa838ee0081a031f73112e2e02babb9f681bb8fe5",
    "most_frequent": " ",
    "training_id": "t-1a21c6464ff8741d27b",
    "train_loss": 2.692727129720152,
    "validation_loss": 2.632115906805275,
    "precision": "bf16",
    "created_unix_ms": 1795772743511
  }
,"crc32c":"e49c92e2"}
', '{
  "format": 1,
  "revision": 1,
  "quantisation": {
    "measured": {
      "float32": 3.877388967290092,
      "int8": 3.8770915349686814
    }
  }
,"crc32c":"e59a876e"}
', 't-1a21c6464ff8741d27b', '2026-11-27 09:49:09.517616+00');
INSERT INTO public.model_versions VALUES ('trained', 1, 'published', true, 2, '\x7d4d9c0aa4a130e51c600c050b6e99c97e1d4400690320c7450603a94954b732', 20116, '{
  "format": 1,
  "sha256": "7d4d9c0aa4a130e51c600c050b6e99c97e1d4400690320c7450603a94954b732",
  "bytes": 20116,
  "architecture": {
    "vocabulary_size": 17,
    "hidden_size": 16,
    "num_layers": 2
  },
  "vocabulary": "\n Tabceimnopqrsuv",
  "facts": {
    "recipe": "fast",
    "epochs": 1,
    "steps": 16,
    "corpus_chars": 3001,
    "corpus_sha256": "f49b9306ab646b910d330f2fa838ee0081a031f73112e2e02babb9f681bb8fe5",
    "most_frequent": " ",
    "training_id": "t-1a21c6957ea5d0ae4de",
    "train_loss": 2.692727129720152,
    "validation_loss": 2.632115906805275,
    "precision": "bf16",
    "created_unix_ms": 1795773073459
  }
,"crc32c":"efb06592"}
', '{
  "format": 1,
  "revision": 1,
  "quantisation": {
    "measured": {
      "float32": 3.877388967290092,
      "int8": 3.8770915349686814
    }
  }
,"crc32c":"e59a876e"}
', 't-1a21c6957ea5d0ae4de', '2026-11-27 09:51:13.932119+00');


--
-- Data for Name: replicas; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: session_clock; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.session_clock VALUES (true, 122880, '2026-11-27 09:51:09.724142+00');


--
-- Data for Name: session_leases; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: session_retired_models; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: session_tombstones; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: session_totals; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.session_totals VALUES (0, 0, 0, 0);
INSERT INTO public.session_totals VALUES (1, 0, 0, 0);
INSERT INTO public.session_totals VALUES (2, 0, 0, 0);
INSERT INTO public.session_totals VALUES (3, 0, 0, 0);
INSERT INTO public.session_totals VALUES (4, 0, 0, 0);
INSERT INTO public.session_totals VALUES (6, 0, 0, 0);
INSERT INTO public.session_totals VALUES (8, 0, 0, 0);
INSERT INTO public.session_totals VALUES (9, 0, 0, 0);
INSERT INTO public.session_totals VALUES (10, 0, 0, 0);
INSERT INTO public.session_totals VALUES (11, 0, 0, 0);
INSERT INTO public.session_totals VALUES (12, 0, 0, 0);
INSERT INTO public.session_totals VALUES (13, 0, 0, 0);
INSERT INTO public.session_totals VALUES (14, 0, 0, 0);
INSERT INTO public.session_totals VALUES (15, 0, 0, 0);
INSERT INTO public.session_totals VALUES (7, 1, 4352, 0);
INSERT INTO public.session_totals VALUES (5, 2, 8704, 0);


--
-- Data for Name: sessions; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.sessions VALUES ('admin', 'golden-1', 'verse', 1, '\x605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb', 2, 1, 75, 35, 1795772972307, 29088, 2, 'b370db42-669f-4ab5-a9d2-f650c5e7ba51', 4352, '\x434853520100020100050061646d696e0800676f6c64656e2d31050076657273650100000000000000605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb13fd681ca20100000000000000000000230000000000000001000000000000001e0000000000000001010000000101a000000005f5310f45ce0bc9fbdae9fe0d41000d063c23eb14f24bb0042e2a3ad8ee44e2b062843dbbfb58bed215403fd172b83eac65d43fa1fd86bfef685d3ebb5c55bf0b37c0bd61870bbf9ddb10bf8e3427bd6056773e1a564540707a1a3b5e669c3ed7fe123e9b6c6740d442473f212c0cbf21228a3e33fd67becdcb23403e79ccbf4a3ead3d1c01423ffbd30b3ff66ebc3f6e76fdbf36bc06bfb8b46040aed92dbf4b000000000000000100000000000000460000000000000001010000000301a000000019f8f71436ec1cb5e9eee5ff13480a05053f270010c94fb10c232b37d4ef40dcde5cdc3e022e3cbe395213beb87bbd3e0c53933f50950ebf4e87013f81549bbf6350cebec47395bec73324bf856641bc78f5bd3e8ba71a4094790a3eceaded3d1503013eb5f2704012cd423f0846ecbb8791553eee4493bfccae094010a3fabf1f09433e96cff73e79ddfa3e42f4b33f78e019c0d17903bfd8976e40672f74bf019faf61cd1c9c134236d3d310dd1652171ee72f5aa6f266038ddf160ba43c6ab5010128000000100b01090c0b030f010a0d090f06070f050a0303090f050f100e0b080a0909070a0901030605050395ba31fa');
INSERT INTO public.sessions VALUES ('admin', 'golden-2', 'verse', 1, '\x605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb', 2, 1, 105, 65, 1795772981047, 37711, 4, '69d0bc58-9155-4828-abc9-5ecd77ed92fc', 4352, '\x434853520100020100050061646d696e0800676f6c64656e2d32050076657273650100000000000000605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb371f691ca20100000000000000000000410000000000000002000000000000003c0000000000000001010000000401a0000000f6ec0b2346d916d3f403e2f6154a0108033623fa11dc48b7061b2337d8ed3edaa2edfcbde813c2be620b573e92723c3f2cebf13f34e189bfdba6c63ea4f92abf734256beb20e8d3db76f3abf662d4abe2139ec3e086e0d40cf841f3c58512d3e45b1793d72487a4097042f3f0b8000beb0d8693e450a15bf1d531a40da64c3bf288a053ec9e4c03ef56aef3eda86ab3fa1e10fc06ee211bfd27f5040a5bf74bf69000000000000000200000000000000640000000000000001010000000001a0000000f4f81c193bd107c707f9dcfc1051040b063821f712d445b3071c2c35d9ee3cdb373936be212f91beb2d4bf3e0fdc073f7427d93f3c255fbf85bdf43d177563bf4c51f63d6f28e5bd02646ebf6e91bdbdaf6e803eff143740e4dc9a3d2ab3823e812af93de9618040084c323f636f3bbe67bc6f3e311849bfb5530e40f2d8ecbf35e5153e1e49c33ec90a153f109bb43f4d5012c092df12bf29e468403ae374bf0194b18fb7438aac4e0e40f9f56c704975ad97cb1614872f21cc5203b49ee75ca0010128000000000a0008010003070101031007070d0308030301070201050709090301010f0d0109010a10070f004f0faf83');
INSERT INTO public.sessions VALUES ('admin', 'golden-3', 'verse', 1, '\x605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb', 2, 1, 135, 95, 1795772991887, 48567, 6, 'e7deaf37-a4ef-472c-a0fd-e44fb4794de2', 4352, '\x434853520100020100050061646d696e0800676f6c64656e2d33050076657273650100000000000000605aef765ed7960d29661170a441f1c70e64bf9770bf3c7e00b96851436617fb8f49691ca201000000000000000000005f0000000000000003000000000000005a0000000000000001010000000101a000000004f5082643df0bceecededf70752080f043922f613ca4cb20a292d3ad8f042db1858603d20ee52be669f133e3a31413fb1b6973fba4441bf170f4c3e47dd40bf78acb7be78cfb9bec036d9be188c27be9668363e65cc2e40756be73d4838a43e615dbe3d375a75402d012d3f5ab053be6b1d803e227e97bf24540d408f8b08c0019b483e80a6123fae03153ff77db13f0de317c0e245fcbe19848340a99e68bf87000000000000000300000000000000820000000000000001010000000201a000000002f82c0d45cf05c5fde3e1000d410208033c20f212d24ab107272e37d7ef41dfcad0d03c9bf72bbed9dc273ff0879d3e4b53e13fccaa91bf364dc03d4d3882bfb28a68bdbf7cc7bed89563bf9f39063c5b9f833e40cf5040d1d9123d593f383e73fb833dede67a4037442c3f4a9199be519f713e649c63bf0f8e1e40fcbcf7bf74ff193e9a831a3fc2b8133ff033b13fce4710c08b4609bf701c8240f6385ebf01c50ae37270c6b614789bd542d0bd97546943ca59d257ab347641c851f64f2d840101280000000d0d00080204000d070e000d0903000601030a08100c0d030f060101000c0d0101030b01020701029f2ae822');


--
-- Data for Name: training_events; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 0, '{"accepted":{"corpus_chars":3001,"vocabulary_size":17,"steps_per_epoch":16,"total_steps":16,"parameters":4705,"device":"cpu"}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 1, '{"checkpoint":{"step":0}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 2, '{"step":{"epoch":1,"step":1,"total_steps":16,"loss":2.8429891005158425,"gradient_norm":0.5112699628162727,"chars_per_second":13.21509330241298,"eta_seconds":181.61053514999998,"learning_rate":0.01}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 3, '{"step":{"epoch":1,"step":2,"total_steps":16,"loss":2.8129619881510735,"gradient_norm":0.3547923387422777,"chars_per_second":13.684574833195706,"eta_seconds":166.59555803099997,"learning_rate":0.00990488713799599}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 4, '{"step":{"epoch":1,"step":3,"total_steps":16,"loss":2.7435241997241975,"gradient_norm":0.3505606061310283,"chars_per_second":13.66101473058928,"eta_seconds":153.88327995733334,"learning_rate":0.00962320368593087}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 5, '{"step":{"epoch":1,"step":4,"total_steps":16,"loss":2.759673511981964,"gradient_norm":0.3937468152412949,"chars_per_second":13.30245239512802,"eta_seconds":142.61815052400001,"learning_rate":0.0091657745808976}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 6, '{"step":{"epoch":1,"step":5,"total_steps":16,"loss":2.690755821764469,"gradient_norm":0.23981812946842668,"chars_per_second":13.527232363007451,"eta_seconds":130.6082267402,"learning_rate":0.00855017856687341}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 7, '{"step":{"epoch":1,"step":6,"total_steps":16,"loss":2.7305293805897235,"gradient_norm":0.25156624574218056,"chars_per_second":13.684597791070132,"eta_seconds":118.43225433166666,"learning_rate":0.007800072653447032}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 8, '{"checkpoint":{"step":6}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 9, '{"step":{"epoch":1,"step":7,"total_steps":16,"loss":2.6782818265259265,"gradient_norm":0.22107171701488756,"chars_per_second":625.1150187215892,"eta_seconds":91.69122409842856,"learning_rate":0.006944282990207194}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 10, '{"step":{"epoch":1,"step":16,"total_steps":16,"loss":2.6727070309221745,"gradient_norm":0.3150011687388393,"chars_per_second":554581.4008032957,"eta_seconds":0.0,"learning_rate":0.00019511286200400935}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 11, '{"epoch":{"epoch":1,"step":16,"train_loss":2.692727129720152,"validation_loss":2.632115906805275,"bits_per_char":3.7973405657929273,"seconds":71.31799948400001,"chars_per_second":35.8955665964008,"sample":"","best":true}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 12, '{"checkpoint":{"step":16}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6464ff8741d27b', 13, '{"finished":{"state":"succeeded","version":1,"train_loss":2.692727129720152,"validation_loss":2.632115906805275,"message":"","best_epoch":1}}', 1);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 0, '{"accepted":{"corpus_chars":3001,"vocabulary_size":17,"steps_per_epoch":16,"total_steps":16,"parameters":4705,"device":"cpu"}}', 2);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 1, '{"checkpoint":{"step":0}}', 5);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 2, '{"step":{"epoch":1,"step":1,"total_steps":16,"loss":2.8429891005158425,"gradient_norm":0.5112699628162727,"chars_per_second":12.037984303862316,"eta_seconds":199.36894041,"learning_rate":0.01}}', 6);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 3, '{"step":{"epoch":1,"step":2,"total_steps":16,"loss":2.8129619881510735,"gradient_norm":0.3547923387422777,"chars_per_second":12.666225226551626,"eta_seconds":181.462973118,"learning_rate":0.00990488713799599}}', 7);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 4, '{"step":{"epoch":1,"step":3,"total_steps":16,"loss":2.7435241997241975,"gradient_norm":0.3505606061310283,"chars_per_second":13.218781362372047,"eta_seconds":164.78484563233332,"learning_rate":0.00962320368593087}}', 8);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 5, '{"step":{"epoch":1,"step":4,"total_steps":16,"loss":2.759673511981964,"gradient_norm":0.3937468152412949,"chars_per_second":13.140592186273071,"eta_seconds":150.609850347,"learning_rate":0.0091657745808976}}', 9);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 6, '{"step":{"epoch":1,"step":5,"total_steps":16,"loss":2.690755821764469,"gradient_norm":0.23981812946842668,"chars_per_second":13.55932843551006,"eta_seconds":136.4072113316,"learning_rate":0.00855017856687341}}', 10);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 7, '{"checkpoint":{"step":5}}', 12);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 8, '{"step":{"epoch":1,"step":6,"total_steps":16,"loss":2.7305293805897235,"gradient_norm":0.25156624574218056,"chars_per_second":12.820555578298421,"eta_seconds":124.56562934666667,"learning_rate":0.007800072653447032}}', 13);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 9, '{"step":{"epoch":1,"step":16,"total_steps":16,"loss":2.6727070309221745,"gradient_norm":0.3150011687388393,"chars_per_second":37238.5137746077,"eta_seconds":0.0,"learning_rate":0.00019511286200400935}}', 14);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 10, '{"epoch":{"epoch":1,"step":16,"train_loss":2.692727129720152,"validation_loss":2.632115906805275,"bits_per_char":3.7973405657929273,"seconds":75.603511033,"chars_per_second":33.860861288341376,"sample":"","best":true}}', 15);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 11, '{"checkpoint":{"step":16}}', 17);
INSERT INTO public.training_events VALUES ('t-1a21c6957ea5d0ae4de', 12, '{"finished":{"state":"succeeded","version":1,"train_loss":2.692727129720152,"validation_loss":2.632115906805275,"message":"","best_epoch":1}}', 18);


--
-- Data for Name: training_revision; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.training_revision VALUES (true, 19);


--
-- Data for Name: trainings; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.trainings VALUES ('t-1a21c6464ff8741d27b', 'admin', '{
  "format": 1,
  "id": "t-1a21c6464ff8741d27b",
  "created_unix_ms": 1795772671231,
  "publisher": {
    "owner": "admin",
    "is_admin": true
  },
  "spec": {
    "model": "verse",
    "hidden_size": 16,
    "num_layers": 2,
    "batch_size": 8,
    "sequence_length": 20,
    "epochs": 1,
    "dropout": 0.1,
    "learning_rate": 0.01,
    "clip_norm": 5.0,
    "validation_fraction": 0.1,
    "seed": 5,
    "skip_chars": 0,
    "recipe": "fast",
    "init_from": null,
    "cancel_on_disconnect": false,
    "sample_prime": null,
    "sample_chars": 0,
    "extend_vocabulary": false,
    "precision": "bf16",
    "weight_decay": 0.01,
    "locked_dropout": false,
    "recurrent_dropout": 0.0,
    "input_dropout": 0.0,
    "average_decay": 0.0
  },
  "vocabulary": "\n Tabceimnopqrsuv",
  "corpus_sha256": "f49b9306ab646b910d330f2fa838ee0081a031f73112e2e02babb9f681bb8fe5",
  "corpus_chars": 3001,
  "most_frequent": " ",
  "training_chars": 2701,
  "tokens_sha256": "8f222e4d0eab72f6dbba39d12076225615d360c925cf3ad31eae3648e3c85907",
  "tokens_width": "one"
,"crc32c":"e0037efd"}
', 'ended', '2026-11-27 09:49:09.708662+00', 0, NULL, NULL, false, NULL, NULL, NULL, 1, '2026-11-27 09:49:09.708662+00');
INSERT INTO public.trainings VALUES ('t-1a21c6957ea5d0ae4de', 'admin', '{
  "format": 1,
  "id": "t-1a21c6957ea5d0ae4de",
  "created_unix_ms": 1795772995562,
  "publisher": {
    "owner": "admin",
    "is_admin": true
  },
  "spec": {
    "model": "trained",
    "hidden_size": 16,
    "num_layers": 2,
    "batch_size": 8,
    "sequence_length": 20,
    "epochs": 1,
    "dropout": 0.1,
    "learning_rate": 0.01,
    "clip_norm": 5.0,
    "validation_fraction": 0.1,
    "seed": 5,
    "skip_chars": 0,
    "recipe": "fast",
    "init_from": null,
    "cancel_on_disconnect": false,
    "sample_prime": null,
    "sample_chars": 0,
    "extend_vocabulary": false,
    "precision": "bf16",
    "weight_decay": 0.01,
    "locked_dropout": false,
    "recurrent_dropout": 0.0,
    "input_dropout": 0.0,
    "average_decay": 0.0
  },
  "vocabulary": "\n Tabceimnopqrsuv",
  "corpus_sha256": "f49b9306ab646b910d330f2fa838ee0081a031f73112e2e02babb9f681bb8fe5",
  "corpus_chars": 3001,
  "most_frequent": " ",
  "training_chars": 2701,
  "tokens_sha256": "8f222e4d0eab72f6dbba39d12076225615d360c925cf3ad31eae3648e3c85907",
  "tokens_width": "one"
,"crc32c":"76c91505"}
', 'ended', '2026-11-27 09:49:55.791769+00', 1, NULL, NULL, false, NULL, NULL, NULL, 19, '2026-11-27 09:49:55.791769+00');


--
-- Name: session_uses; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.session_uses', 6, true);


--
-- Name: _sqlx_migrations _sqlx_migrations_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public._sqlx_migrations
    ADD CONSTRAINT _sqlx_migrations_pkey PRIMARY KEY (version);


--
-- Name: model_names model_names_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.model_names
    ADD CONSTRAINT model_names_pkey PRIMARY KEY (name);


--
-- Name: model_revision model_revision_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.model_revision
    ADD CONSTRAINT model_revision_pkey PRIMARY KEY (single);


--
-- Name: model_versions model_versions_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_pkey PRIMARY KEY (name, version);


--
-- Name: replicas replicas_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.replicas
    ADD CONSTRAINT replicas_pkey PRIMARY KEY (process);


--
-- Name: session_clock session_clock_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_clock
    ADD CONSTRAINT session_clock_pkey PRIMARY KEY (only_row);


--
-- Name: session_leases session_leases_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_leases
    ADD CONSTRAINT session_leases_pkey PRIMARY KEY (owner, id);


--
-- Name: session_leases session_leases_token_key; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_leases
    ADD CONSTRAINT session_leases_token_key UNIQUE (token);


--
-- Name: session_retired_models session_retired_models_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_retired_models
    ADD CONSTRAINT session_retired_models_pkey PRIMARY KEY (model, model_version);


--
-- Name: session_tombstones session_tombstones_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_tombstones
    ADD CONSTRAINT session_tombstones_pkey PRIMARY KEY (owner, id);


--
-- Name: session_totals session_totals_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.session_totals
    ADD CONSTRAINT session_totals_pkey PRIMARY KEY (shard);


--
-- Name: sessions sessions_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (owner, id);


--
-- Name: training_events training_events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.training_events
    ADD CONSTRAINT training_events_pkey PRIMARY KEY (training, sequence);


--
-- Name: training_revision training_revision_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.training_revision
    ADD CONSTRAINT training_revision_pkey PRIMARY KEY (single);


--
-- Name: trainings trainings_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.trainings
    ADD CONSTRAINT trainings_pkey PRIMARY KEY (id);


--
-- Name: model_versions_revision; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX model_versions_revision ON public.model_versions USING btree (revision);


--
-- Name: model_versions_training; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX model_versions_training ON public.model_versions USING btree (training_id) WHERE (state <> 'reserved'::text);


--
-- Name: session_tombstones_order; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX session_tombstones_order ON public.session_tombstones USING btree (used_order);


--
-- Name: sessions_model; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX sessions_model ON public.sessions USING btree (model, model_version);


--
-- Name: sessions_owner_used; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX sessions_owner_used ON public.sessions USING btree (owner, used_order);


--
-- Name: sessions_used; Type: INDEX; Schema: public; Owner: -
--

CREATE UNIQUE INDEX sessions_used ON public.sessions USING btree (used_order);


--
-- Name: training_events_revision; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX training_events_revision ON public.training_events USING btree (revision);


--
-- Name: trainings_revision; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX trainings_revision ON public.trainings USING btree (revision);


--
-- Name: trainings_unfinished; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX trainings_unfinished ON public.trainings USING btree (queued_at) WHERE (state = ANY (ARRAY['queued'::text, 'running'::text]));


--
-- Name: model_versions model_versions_name_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.model_versions
    ADD CONSTRAINT model_versions_name_fkey FOREIGN KEY (name) REFERENCES public.model_names(name);


--
-- Name: training_events training_events_training_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.training_events
    ADD CONSTRAINT training_events_training_fkey FOREIGN KEY (training) REFERENCES public.trainings(id) ON DELETE CASCADE;


--
-- PostgreSQL database dump complete
--


