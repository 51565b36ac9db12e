-- One statement every few seconds is all that a replica sends while it has
-- nothing to do: its heartbeat, the renewal of its leases, and what others have
-- changed. Notifications report changes in between.

-- Announces the new revision of what the trigger is on; the argument names the
-- channel. It is sent when the transaction commits.
CREATE FUNCTION notify_revision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(TG_ARGV[0], NEW.revision::text);
    RETURN NULL;
END $$;
CREATE TRIGGER model_revision_changed AFTER UPDATE ON model_revision
    FOR EACH ROW EXECUTE FUNCTION notify_revision('charlstm_models');
CREATE TRIGGER training_revision_changed AFTER UPDATE ON training_revision
    FOR EACH ROW EXECUTE FUNCTION notify_revision('charlstm_trainings');

-- Counts sessions, their bytes, tombstones and running calls.
CREATE FUNCTION session_counts(
    OUT sessions bigint, OUT bytes bigint, OUT tombstones bigint, OUT pending_creates bigint,
    OUT in_use bigint
) LANGUAGE sql VOLATILE AS $$
    SELECT (SELECT sum(t.sessions)::bigint FROM session_totals t),
        (SELECT sum(t.bytes)::bigint FROM session_totals t),
        (SELECT sum(t.tombstones)::bigint FROM session_totals t),
        count(*) FILTER (WHERE l.is_new), count(*)
    FROM session_leases l WHERE l.until > clock_timestamp()
$$;

-- Shortens leases, claims and heartbeats that are further in the future than
-- possible: after the clock was set back, they would last that much longer.
CREATE FUNCTION limit_future_times(p_lease interval) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE session_leases SET until = clock_timestamp() + p_lease WHERE token IN (
        SELECT l.token FROM session_leases l WHERE l.until > clock_timestamp() + 2 * p_lease
            FOR UPDATE SKIP LOCKED);
    UPDATE trainings SET lease_until = clock_timestamp() + p_lease WHERE id IN (
        SELECT t.id FROM trainings t WHERE t.state = 'running'
            AND t.lease_until > clock_timestamp() + 2 * p_lease FOR UPDATE SKIP LOCKED);
    UPDATE replicas SET heartbeat = clock_timestamp() WHERE process IN (
        SELECT r.process FROM replicas r WHERE r.heartbeat > clock_timestamp() + p_lease
            FOR UPDATE SKIP LOCKED);
END $$;

-- The heartbeat of a process. Renews its leases (see `session_renew`), and
-- notifies the process itself, which shows whether notifications arrive.
-- Never waits for a lock.
CREATE FUNCTION replica_heartbeat(
    p_process uuid, p_name text, p_address text, p_version text, p_precision text,
    p_generations_running integer, p_training text,
    -- Older heartbeats of this name, and of any other, are removed.
    p_present interval, p_listed interval,
    p_channel text, p_number bigint,
    p_owners text[], p_ids text[], p_tokens uuid[], p_lease interval,
    p_maintenance interval,
    OUT o_tokens uuid[], OUT o_states text[], OUT o_replicas text[],
    OUT o_models bigint, OUT o_trainings bigint, OUT o_is_training_waiting boolean,
    OUT o_is_maintenance_due boolean,
    OUT o_sessions bigint, OUT o_bytes bigint, OUT o_tombstones bigint,
    OUT o_pending_creates bigint, OUT o_in_use bigint
) LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(p_tokens) > 0 THEN
        SELECT array_agg(r.o_token), array_agg(r.o_state), array_agg(r.o_replica)
            INTO o_tokens, o_states, o_replicas
            FROM session_renew(p_owners, p_ids, p_tokens, p_lease) r;
    END IF;
    PERFORM limit_future_times(p_lease);
    DELETE FROM replicas WHERE process IN (
        SELECT r.process FROM replicas r WHERE r.process <> p_process
            AND r.heartbeat < clock_timestamp() -
                CASE WHEN r.name = p_name THEN p_present ELSE p_listed END
            FOR UPDATE SKIP LOCKED);
    INSERT INTO replicas
            (process, name, address, version, precision, generations_running, training)
        VALUES (p_process, p_name, p_address, p_version, p_precision, p_generations_running,
            p_training)
        ON CONFLICT (process) DO UPDATE SET heartbeat = clock_timestamp(),
            generations_running = excluded.generations_running, training = excluded.training;
    SELECT m.revision INTO o_models FROM model_revision m;
    SELECT t.revision INTO o_trainings FROM training_revision t;
    o_is_training_waiting := EXISTS (SELECT FROM trainings t WHERE t.state = 'queued'
        OR (t.state = 'running' AND t.lease_until < clock_timestamp()));
    SELECT c.seen IS NULL
            OR abs(extract(epoch FROM clock_timestamp() - c.seen)) >= extract(epoch FROM p_maintenance)
        INTO o_is_maintenance_due FROM session_clock c;
    SELECT * INTO o_sessions, o_bytes, o_tombstones, o_pending_creates, o_in_use
        FROM session_counts();
    PERFORM pg_notify(p_channel, p_number::text);
END $$;
