SET LOCAL lock_timeout = '5s'; -- behind a backup, rather fail than have the reports wait

-- The sum over a customer's instances may be beyond what one of them can report.
ALTER TABLE usage_alerts ALTER COLUMN active_devices TYPE BIGINT;

-- Nobody calls these any more, since find_customer and find_license.
DROP FUNCTION read_customer(TEXT, UUID);
DROP FUNCTION read_license(TEXT, UUID);
