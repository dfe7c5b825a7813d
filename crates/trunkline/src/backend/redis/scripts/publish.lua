-- Appends messages to one stream.
-- KEYS: stream, version of the routes known here, count of messages ever added; in a cluster also all others.
-- ARGV: 1 if the publisher's routes were just confirmed, their version (empty: none to compare), max_messages (0: none),
-- '=' or '~', max_age in ms (0: none), max_bytes (0: none), expiry of the stream in ms (0: none),
-- then for each message: entry, deduplication key (empty: none), its window in ms, subject to ask for responders
-- (empty: do not ask).
-- Answers STALE and the version known here, or for each message {id, 1 if it is a duplicate, 1 if nobody answers on its
-- subject}.
local stream = KEYS[1]
if ARGV[2] ~= '' then
  local known = redis.call('GET', KEYS[2])
  if known ~= ARGV[2] then
    -- Where none is known the stream is new, or the server has lost its data: the publisher looks which it is.
    if known and tonumber(known) > tonumber(ARGV[2]) or not known and ARGV[1] ~= '1' then
      return redis.error_reply('STALE ' .. (known or 0))
    end
    redis.call('SET', KEYS[2], ARGV[2])
  end
end
local now = clock()

local function answered(subject)
  if redis.call('ZCOUNT', stream .. ':responders:' .. subject, now, '+inf') > 0 then
    return true
  end
  for _, pattern in ipairs(redis.call('ZRANGEBYSCORE', stream .. ':responders', now, '+inf')) do
    if matches(string.match(pattern, '^(%S+)'), subject) then
      return true
    end
  end
  return false
end

local answers, count = {}, 0
for i = 8, #ARGV, 4 do
  count = count + 1
end
local index = redis.call('INCRBY', KEYS[3], count) - count
local skipped = 0
for i = 8, #ARGV, 4 do
  local known = ARGV[i + 1] ~= '' and redis.call('GET', ARGV[i + 1])
  local nobody = 0
  if ARGV[i + 3] ~= '' and not answered(ARGV[i + 3]) then
    nobody = 1
  end
  if known then
    skipped = skipped + 1
    answers[#answers + 1] = { known, 1, nobody }
  else
    index = index + 1
    local id
    if ARGV[3] == '0' then
      id = redis.call('XADD', stream, '*', 'n', index, 'm', ARGV[i])
    else
      id = redis.call('XADD', stream, 'MAXLEN', ARGV[4], ARGV[3], '*', 'n', index, 'm', ARGV[i])
    end
    if ARGV[i + 1] ~= '' then
      redis.call('SET', ARGV[i + 1], id, 'PX', ARGV[i + 2])
    end
    answers[#answers + 1] = { id, 0, nobody }
  end
end
if skipped > 0 then
  redis.call('DECRBY', KEYS[3], skipped)
end
if ARGV[5] ~= '0' then
  -- Five for each batch catch up with any backlog, without holding up the server for it.
  trim_age(stream, now - tonumber(ARGV[5]), 5)
end
if ARGV[6] ~= '0' then
  trim_bytes(stream, tonumber(ARGV[6]))
end
if ARGV[7] ~= '0' then
  redis.call('PEXPIRE', stream, ARGV[7])
  redis.call('PEXPIRE', KEYS[3], ARGV[7])
end
return answers
