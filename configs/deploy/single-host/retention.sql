-- Deletes the events of runs that are older than 90 days, but for those about assets: what was materialized when, with
-- its metadata, and what checks found stay known. The list of runs stays too.
DELETE FROM event_logs
 WHERE asset_key IS NULL
   AND "timestamp" < now() AT TIME ZONE 'utc' - :'age'::interval
   AND run_id IN (SELECT run_id FROM runs WHERE status IN ('SUCCESS', 'FAILURE', 'CANCELED'));
