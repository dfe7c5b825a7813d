local function matches(pattern, subject)
  local tokens = string.gmatch(subject, '[^.]+')
  for token in string.gmatch(pattern, '[^.]+') do
    local found = tokens()
    if not found then
      return false
    elseif token == '>' then
      return true
    elseif token ~= '*' and token ~= found then
      return false
    end
  end
  return tokens() == nil
end

-- Ids of entries as text that sorts as the ids do.
local function pad(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return string.rep('0', 20 - #ms) .. ms .. '-' .. string.rep('0', 20 - #seq) .. seq
end

local function unpad(text)
  local ms, seq = string.match(text, '^0*(%d+)-0*(%d+)$')
  return ms .. '-' .. seq
end

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then
      return entry[2][i + 1]
    end
  end
  return ''
end

-- XTRIM MINID came with Redis 6.2; this does the same on 6.0. What has become too old is taken away once, so the cost
-- is that of one more command for each message. At most so many pages of 100 go at a time.
local function trim_age(stream, oldest, pages)
  if oldest <= 0 then
    return
  end
  repeat
    local old = redis.call('XRANGE', stream, '-', string.format('%d', oldest - 1), 'COUNT', 100)
    local ids = {}
    for _, entry in ipairs(old) do
      local ms = tonumber(string.match(entry[1], '^(%d+)'))
      if ms < oldest then
        ids[#ids + 1] = entry[1]
      end
    end
    if #ids > 0 then
      redis.call('XDEL', stream, unpack(ids))
    end
    pages = pages - 1
  until #ids < 100 or pages <= 0
end

-- What Redis says a stream takes is an estimate by a few of its nodes; so are the bytes that are kept.
local function trim_bytes(stream, most)
  local length = redis.call('XLEN', stream)
  local bytes = redis.call('MEMORY', 'USAGE', stream) or 0
  if length > 1 and bytes > most then
    redis.call('XTRIM', stream, 'MAXLEN', '~', math.max(1, math.floor(length * most / bytes)))
  end
end

local function clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Whoever waits for something of the stream's consumers looks again.
local function wake(stream)
  redis.call('XADD', stream .. ':wake', 'MAXLEN', 1, '*', 'w', 1)
end

local function added(stream)
  return tonumber(redis.call('GET', stream .. ':added') or 0)
end

-- Running number of the last message up to and including the entry `id`, as far as what is kept tells.
local function index_at(stream, id)
  local following = redis.call('XRANGE', stream, id, '+', 'COUNT', 2)
  for _, entry in ipairs(following) do
    local n = tonumber(field(entry, 'n'))
    if n then
      return entry[1] == id and n or n - 1
    end
  end
  return added(stream)
end

-- How many of these running numbers are of messages that were deleted one by one.
local function deleted_between(stream, first, last)
  local count = 0
  local function add(ranges)
    for _, range in ipairs(ranges) do
      local from, to = string.match(range, '^(%d+)-(%d+)$')
      count = count + math.max(0, math.min(tonumber(to), last) - math.max(tonumber(from), first) + 1)
    end
  end
  if first <= last then
    local key, text = stream .. ':deleted', string.format('%d', last)
    add(redis.call('ZRANGEBYSCORE', key, string.format('%d', first), text))
    add(redis.call('ZRANGEBYSCORE', key, '(' .. text, '+inf', 'LIMIT', 0, 1))
  end
  return count
end

-- Gives a pending message back: nobody owns it, and it is due at the time given. `false` when limits removed it.
local function give_back(stream, group, due, id, at)
  if #redis.call('XCLAIM', stream, group, '~', 0, id, 'JUSTID') == 0 then
    redis.call('XACK', stream, group, id)
    redis.call('ZREM', due, pad(id))
    return false
  end
  redis.call('ZADD', due, at, pad(id))
  return true
end

-- Redis refuses a script whose first write needs memory when there is none. This write needs none, and what comes after
-- it is carried out: what is stored can be read and settled also when nothing more can be stored.
local function even_when_full(set)
  redis.call('ZREM', set, '')
end

local function drop_consumer(stream, name)
  local existed = redis.call('EXISTS', stream .. ':consumer:' .. name)
  redis.pcall('XGROUP', 'DESTROY', stream, 'c:' .. name)
  redis.call('SREM', stream .. ':consumers', name)
  for _, what in ipairs({ 'consumer', 'due', 'members', 'lease' }) do
    redis.call('DEL', stream .. ':' .. what .. ':' .. name)
  end
  -- Tells members that are still there from those of a server that was emptied.
  redis.call('SET', stream .. ':gone:' .. name, 1, 'PX', 3600000)
  return existed
end

local function last_id(stream)
  if redis.call('EXISTS', stream) == 0 then
    return '0-0'
  end
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
  return '0-0'
end
