-- Appends messages to one stream, some of which may be duplicates or ask for responders.
-- KEYS: stream, version of the routes known here, count of messages ever added; in a cluster also all others.
-- ARGV: as in append.lua, then for each message: entry, deduplication key (empty: none), its
-- window in ms, subject to ask for responders (empty: do not ask).
-- Answers STALE and the version known here, or for each message its id and a number: 1 if it is a duplicate, 2 if nobody answers on its subject.
local stream = KEYS[1]
local why = stale(KEYS[2], ARGV[2], ARGV[1])
if why then
  return why
end
local now = clock()

local asked = {}
local function is_answered(subject)
  if asked[subject] == nil then
    asked[subject] = answered(stream, subject, now)
  end
  return asked[subject]
end

local answers = {}
local number, ms
for i = 8, #ARGV, 4 do
  local id = ARGV[i + 1] ~= '' and redis.call('GET', ARGV[i + 1])
  local flags = 0
  if id then
    flags = 1
    -- Written again, so that who waits for replicas waits for this one, too: a read is nothing to wait for.
    redis.call('SET', ARGV[i + 1], id, 'KEEPTTL')
  else
    number = redis.call('INCRBY', KEYS[3], 1)
    if ms then
      id = string.format('%d-%d', ms, number)
      redis.call('XADD', stream, id, 'm', ARGV[i])
    else
      local refused
      ms, refused = first_of(stream, now, number, ARGV[i])
      if refused then
        redis.call('INCRBY', KEYS[3], -1)
        return refused
      end
      id = string.format('%d-%d', ms, number)
    end
    if ARGV[i + 1] ~= '' then
      redis.call('SET', ARGV[i + 1], id, 'PX', ARGV[i + 2])
    end
  end
  if ARGV[i + 3] ~= '' and not is_answered(ARGV[i + 3]) then
    flags = flags + 2
  end
  answers[#answers + 1] = id
  answers[#answers + 1] = flags
end
trim(stream, KEYS[3], now, ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7])
return answers
