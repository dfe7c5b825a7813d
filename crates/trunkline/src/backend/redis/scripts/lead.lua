-- Leads a transaction in which plain XADDs follow, with the ids after the first one's: payloads pass through no script.
-- KEYS: stream, version of the routes known here, count of messages ever added, record of this publisher's last such
-- transaction: its name, then the time, or why it was refused.
-- ARGV: version of the routes by which the publisher routed (empty: none to compare), number of the newest message as the
-- publisher knows it, how many messages there are, ms of their ids, the first entry, a name for this transaction, the name
-- of the one that must have been the last (empty: any).
-- Appends the first entry and answers the time; or refuses, and then no XADD that follows can succeed, because the stream
-- has a newer id.
local function id(n)
  return string.format('%s-%d', ARGV[4], ARGV[2] + n)
end
local why
if ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1] then
  why = 'STALE ' .. (redis.call('GET', KEYS[2]) or '0')
elseif (redis.call('GET', KEYS[3]) or '0') ~= ARGV[2] then
  why = 'OUTRUN others have written to the stream'
elseif ARGV[7] ~= '' and string.match(redis.call('GET', KEYS[4]) or '', '^(%d+) %d+$') ~= ARGV[7] then
  why = 'OUTRUN the transaction before was refused'
else
  local made = redis.pcall('XADD', KEYS[1], id(1), 'm', ARGV[5])
  if type(made) ~= 'table' or not made.err then
    redis.call('INCRBY', KEYS[3], ARGV[3])
    local time = redis.call('TIME')
    local ms = time[1] * 1000 + math.floor(time[2] / 1000)
    redis.call('SET', KEYS[4], string.format('%s %d', ARGV[6], ms), 'PX', 60000)
    return ms
  end
  why = 'OUTRUN the stream has a newer id'
end
local barred = redis.pcall('XADD', KEYS[1], id(ARGV[3]), 'm', '')
if type(barred) ~= 'table' or not barred.err then
  redis.call('XDEL', KEYS[1], barred)
end
redis.call('SET', KEYS[4], ARGV[6] .. ' ' .. why, 'PX', 60000)
return redis.error_reply(why)
