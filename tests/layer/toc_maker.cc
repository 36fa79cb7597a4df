#include "tests/layer/toc_maker.h"

#include <cstring>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "tests/support/layer_maker.h"

namespace lazyblob::layer {
namespace {

std::string EmptyMember(absl::string_view extra) {
  std::string member("\x1f\x8b\x08\x04\0\0\0\0\0\xff", 10);
  member += static_cast<char>(extra.size());
  member += '\0';
  absl::StrAppend(&member, extra, absl::string_view("\x01\0\0\xff\xff", 5), std::string(8, '\0'));
  return member;
}

template <typename T>
std::string Little(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value));
}

std::string Skippable(const std::string& bytes) {
  return absl::StrCat(Little<uint32_t>(0x184D2A50), Little<uint32_t>(static_cast<uint32_t>(bytes.size())),
                      bytes);
}

const char* TypeName(char type) {
  switch (type) {
    case '1':
      return "hardlink";
    case '2':
      return "symlink";
    case '3':
      return "char";
    case '4':
      return "block";
    case '5':
      return "dir";
    case '6':
      return "fifo";
    default:
      return "reg";
  }
}

std::string DigestOf(absl::string_view bytes) { return base::Digest::Of(bytes).ToString(); }

class Maker {
 public:
  explicit Maker(const TocOptions& options)
      : options_(options), stargz_(options.format == Format::kEstargz) {}

  TocBlob Make(const std::vector<support::TarMember>& members) {
    result_.toc = {{"version", 1}, {"entries", nlohmann::json::array()}};
    for (const support::TarMember& member : members) AddMember(member);
    if (!stargz_) pending_ += std::string(1024, '\0');
    Flush();
    if (options_.edit) options_.edit(result_.toc);
    std::string text = result_.toc.dump(1);
    if (options_.edit_text) options_.edit_text(text);
    stargz_ ? EndStargz(text) : EndChunked(text);
    result_.layer.media_type = stargz_ ? "application/vnd.oci.image.layer.v1.tar+gzip"
                                       : "application/vnd.oci.image.layer.v1.tar+zstd";
    result_.layer.digest = base::Digest::Of(result_.blob);
    result_.layer.size = result_.blob.size();
    return std::move(result_);
  }

 private:
  std::string Compress(const std::string& bytes) {
    return stargz_ ? support::Gzip(bytes) : support::Zstd(bytes);
  }
  void Flush() {
    if (!pending_.empty()) result_.blob += Compress(pending_);
    pending_.clear();
  }

  nlohmann::json Describe(const support::TarMember& member) {
    nlohmann::json entry = {{"name", member.name}, {"type", TypeName(member.type)}, {"mode", member.mode}};
    if (member.uid != 0) entry["uid"] = member.uid;
    if (member.gid != 0) entry["gid"] = member.gid;
    if (!member.contents.empty()) entry["size"] = member.contents.size();
    if (!member.link.empty()) entry["linkName"] = member.link;
    if (member.device_major != 0) entry["devMajor"] = member.device_major;
    if (member.device_minor != 0) entry["devMinor"] = member.device_minor;
    const absl::Time time = absl::FromUnixSeconds(member.mtime) + absl::Nanoseconds(member.mtime_nanoseconds);
    entry["modtime"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E*SZ", time, absl::UTCTimeZone());
    for (const auto& [name, value] : member.xattrs) entry["xattrs"][name] = absl::Base64Escape(value);
    entry["NumLink"] = 0;
    return entry;
  }

  void AddMember(const support::TarMember& member) {
    // Headers and padding as the tar maker makes them; the payload goes into members of its own.
    support::TarMaker tar;
    tar.Add(member);
    const std::string all = tar.Unfinished();
    const size_t padded = (member.contents.size() + 511) / 512 * 512;
    pending_ += all.substr(0, all.size() - padded);
    nlohmann::json entry = Describe(member);
    auto& entries = result_.toc["entries"];
    const std::string& contents = member.contents;
    if (contents.empty()) {
      entries.push_back(entry);
      return;
    }
    entry["digest"] = DigestOf(contents);
    if (contents.size() <= options_.small_files) {
      entry["offset"] = result_.blob.size();
      entry["innerOffset"] = pending_.size();
      entry["chunkDigest"] = DigestOf(contents);
      if (result_.blob.empty()) entry.erase("offset");
      entries.push_back(entry);
      pending_ += all.substr(all.size() - padded);
      return;
    }
    for (uint64_t at = 0; at < contents.size(); at += options_.chunk_size) {
      Flush();
      const std::string chunk = contents.substr(at, options_.chunk_size);
      nlohmann::json piece = at == 0 ? entry : nlohmann::json{{"name", member.name}, {"type", "chunk"}};
      piece["offset"] = result_.blob.size();
      if (at > 0) piece["chunkOffset"] = at;
      if (at + chunk.size() < contents.size() || (!stargz_ && contents.size() > chunk.size())) {
        piece["chunkSize"] = chunk.size();
      }
      if (stargz_ || contents.size() > chunk.size()) piece["chunkDigest"] = DigestOf(chunk);
      entries.push_back(piece);
      pending_ = chunk;
    }
    if (!stargz_) {
      Flush();
      entries[entries.size() - (contents.size() + options_.chunk_size - 1) / options_.chunk_size]
             ["endOffset"] = result_.blob.size();
    }
    pending_ += all.substr(all.size() - padded + contents.size());
  }

  void EndStargz(const std::string& text) {
    result_.toc_offset = result_.blob.size();
    support::TarMember member = support::File("stargz.index.json", text, 0444);
    member.mtime = 0;
    (options_.external_toc ? result_.external_toc : result_.blob) +=
        support::Gzip(support::MakeTar({member}));
    const std::string where = absl::StrFormat("%016xSTARGZ", result_.toc_offset);
    if (options_.external_toc) {
      result_.blob += EmptyMember(absl::StrCat(absl::string_view("SG\x11\0", 4), "STARGZEXTERNALTOC"));
    } else if (options_.legacy_footer) {
      result_.blob += EmptyMember(where);
    } else {
      result_.blob += EmptyMember(absl::StrCat(absl::string_view("SG\x16\0", 4), where));
    }
    result_.layer.annotations["containerd.io/snapshot/stargz/toc.digest"] = DigestOf(text);
  }

  void EndChunked(const std::string& text) {
    const std::string compressed = support::Zstd(text);
    result_.toc_offset = result_.blob.size() + 8;
    result_.blob += Skippable(compressed);
    const std::string numbers =
        absl::StrCat(Little<uint64_t>(result_.toc_offset), Little<uint64_t>(compressed.size()),
                     Little<uint64_t>(text.size()), Little<uint64_t>(1));
    if (options_.github_prefix) {
      result_.blob += Skippable("tar-split");
      result_.blob += Skippable(absl::StrCat(numbers, std::string(24, '\0'), "GNUlInUx"));
    } else {
      result_.blob += Skippable(absl::StrCat(numbers, "GnUlInUx"));
    }
    const std::string prefix =
        options_.github_prefix ? "io.github.containers.zstd-chunked." : "io.containers.zstd-chunked.";
    auto& annotations = result_.layer.annotations;
    annotations[prefix + "manifest-checksum"] = DigestOf(compressed);
    if (!options_.footer_only) {
      annotations[prefix + "manifest-position"] =
          absl::StrCat(result_.toc_offset, ":", compressed.size(), ":", text.size(), ":1");
    }
    if (options_.stargz_annotation) annotations["containerd.io/snapshot/stargz/toc.digest"] = DigestOf(text);
  }

  const TocOptions& options_;
  const bool stargz_;
  TocBlob result_;
  std::string pending_;  // bytes of the tar not yet compressed
};

}  // namespace

TocBlob MakeTocBlob(const std::vector<support::TarMember>& members, const TocOptions& options) {
  return Maker(options).Make(members);
}

}  // namespace lazyblob::layer
