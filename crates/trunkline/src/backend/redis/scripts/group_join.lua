-- Joins a queue group of live subscriptions. A group whose members are all gone starts anew, now.
-- KEYS: stream. ARGV: group, process, ms until its entry ends.
local stream, group = KEYS[1], 'q:' .. ARGV[1]
local members = stream .. ':queue:' .. ARGV[1]
local now = clock()
redis.call('ZREMRANGEBYSCORE', members, '-inf', now)
local made = redis.pcall('XGROUP', 'CREATE', stream, group, last_id(stream), 'MKSTREAM')
if type(made) == 'table' and made.err and redis.call('ZCARD', members) == 0 then
  redis.call('XGROUP', 'SETID', stream, group, last_id(stream))
end
redis.call('ZADD', members, now + ARGV[3], ARGV[2])
redis.call('PEXPIRE', members, ARGV[3] * 10)
return 1
