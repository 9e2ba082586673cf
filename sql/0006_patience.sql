SET LOCAL lock_timeout = '5s'; -- behind a backup, rather fail than have the reports wait

-- The sum over a customer's instances may be beyond what one of them can report.
ALTER TABLE usage_alerts ALTER COLUMN active_devices TYPE BIGINT;

-- Who waits for a row that somebody else holds (an operator's session, a backup) keeps a thread from
-- everybody. A month's partition that cannot be made at once, with all reports waiting, is made later.
ALTER FUNCTION report_usage(TEXT, TEXT, INTEGER, INTEGER, TIMESTAMPTZ, UUID, TIMESTAMPTZ)
  SET lock_timeout = '2s';
ALTER FUNCTION ensure_usage_partition(TIMESTAMPTZ) SET lock_timeout = '500ms';
ALTER FUNCTION drop_usage_partition(TEXT) SET lock_timeout = '2s';

-- Nobody calls these any more, since find_customer and find_license.
DROP FUNCTION read_customer(TEXT, UUID);
DROP FUNCTION read_license(TEXT, UUID);
