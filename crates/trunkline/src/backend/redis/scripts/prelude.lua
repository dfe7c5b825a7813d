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

-- The id right before this one.
local function before(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq == '0' then
    return string.format('%d-18446744073709551615', ms - 1)
  end
  return string.format('%s-%d', ms, seq - 1)
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

-- Number of an entry: the second part of its id, where it is one of the bus. Such ids begin with the time, and end with
-- how many messages the stream has had; so nothing else has to be stored to tell how many are missing.
local function number_of(id)
  return tonumber(string.match(id, '-(%d+)$'))
end

-- Running number of the last message up to and including the entry `id`, as far as what is kept tells.
local function index_at(stream, id)
  local following = redis.call('XRANGE', stream, id, '+', 'COUNT', 2)
  for _, entry in ipairs(following) do
    if field(entry, 'm') ~= '' then
      local n = number_of(entry[1])
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

-- Why a publisher must not append by routes of `version` (empty: none to compare) to a stream that knows those at `key`;
-- nothing where it may. Where none are known the stream is new, or the server has lost its data: the publisher looks
-- which it is, and says so with `confirmed`.
local function stale(key, version, confirmed)
  local known = version ~= '' and redis.call('GET', key)
  if version == '' or known == version then
    return nil
  end
  if known and tonumber(known) > tonumber(version) or not known and confirmed ~= '1' then
    return redis.error_reply('STALE ' .. (known or 0))
  end
  redis.call('SET', key, version)
end

-- Name of a consumer's group. A later consumer of the same name has another, so that members of the earlier one can take
-- nothing from it.
local function group_of(name, identity)
  return 'c:' .. name .. ':' .. identity
end

-- The id up to which a group has read; nothing where there is no such group.
local function position_of(stream, group)
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  for _, found in ipairs(groups) do
    local name, position
    for i = 1, #found, 2 do
      if found[i] == 'name' then
        name = found[i + 1]
      elseif found[i] == 'last-delivered-id' then
        position = found[i + 1]
      end
    end
    if name == group then
      return position
    end
  end
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
  local identity = redis.call('HGET', stream .. ':consumer:' .. name, 'identity')
  if identity then
    redis.pcall('XGROUP', 'DESTROY', stream, group_of(name, identity))
  end
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

-- The last id ever, and the newest kept or ''. What XINFO tells comes with copies of two entries, which may be long; it
-- need not be asked where the newest entry is the last that was added, as its number tells.
local function ends(stream)
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  local id = newest and newest[1] or ''
  if newest and number_of(id) == added(stream) then
    return id, id
  end
  return last_id(stream), id
end

-- Whether somebody is listed at a stream as answering requests on a subject.
local function answered(stream, subject, now)
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

-- Appends the first message of a batch, and tells the time in its id; or the error of the server. The clock may have been
-- set back, or somebody else may have written to the stream: then the time goes on from the newest entry's.
local function first_of(stream, now, number, entry)
  local made = redis.pcall('XADD', stream, string.format('%d-%d', now, number), 'm', entry)
  if type(made) ~= 'table' or not made.err then
    return now
  end
  local ms, seq = string.match(last_id(stream), '^(%d+)-(%d+)$')
  ms = tonumber(ms)
  if tonumber(seq) >= number then
    ms = ms + 1
  end
  if ms < now then
    return nil, made
  end
  made = redis.pcall('XADD', stream, string.format('%d-%d', ms, number), 'm', entry)
  if type(made) == 'table' and made.err then
    return nil, made
  end
  return ms
end

-- Applies limits once for a whole batch.
local function trim(stream, counter, now, messages, how, age, bytes, expiry)
  if messages ~= '0' then
    redis.call('XTRIM', stream, 'MAXLEN', how, messages)
  end
  if age ~= '0' then
    -- Five pages for each batch catch up with any backlog, without holding up the server for it.
    trim_age(stream, now - tonumber(age), 5)
  end
  if bytes ~= '0' then
    trim_bytes(stream, tonumber(bytes))
  end
  if expiry ~= '0' then
    redis.call('PEXPIRE', stream, expiry)
    redis.call('PEXPIRE', counter, expiry)
  end
end
