// hello.c in C++: handles that free themselves, and events as a range.
//
//   hello++ --id 1 --listen 127.0.0.1:7101 --peer 2=127.0.0.1:7102 --peer 3=127.0.0.1:7103
//
// Each member says hello and ends; each prints all that was said, in the one order.
#include "arguments.h"

#include <iostream>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

struct error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

void must(consort_status status)
{
    if (status != CONSORT_OK)
        throw error(std::string(consort_status_name(status)) + ": " + consort_last_error());
}

template <typename T, consort_status (*Free)(T *)> struct deleter {
    void operator()(T *handle) const { Free(handle); }
};
using node = std::unique_ptr<consort_node, deleter<consort_node, consort_node_free>>;
using group = std::unique_ptr<consort_group, deleter<consort_group, consort_group_free>>;

// An event that is lent until it goes out of scope.
class event {
public:
    explicit event(consort_group *from) { must(consort_next(from, -1, &told)); }
    ~event() { consort_release(&told); }
    event(const event &) = delete;
    event &operator=(const event &) = delete;
    const consort_event *operator->() const { return &told; }
    std::string_view payload() const { return {reinterpret_cast<const char *>(told.data), told.len}; }

private:
    consort_event told{};
};

node start(const consort_node_options &options)
{
    consort_node *made = nullptr;
    must(consort_node_new(&options, &made));
    return node(made);
}

group main_group(const node &of)
{
    consort_group *made = nullptr;
    must(consort_node_group(of.get(), nullptr, 0, &made));
    return group(made);
}

void run(const consort_node_options &options)
{
    node mine = start(options);
    group all = main_group(mine);
    const std::string hello = "hello from " + std::to_string(options.id);
    must(consort_multicast(all.get(), hello.data(), hello.size(), nullptr));
    must(consort_end(all.get()));

    std::set<std::uint32_t> members, ended;
    while (members.empty() || ended.size() < members.size()) {
        event next(all.get());
        if (next->kind == CONSORT_VIEW) {
            members.clear();
            for (std::size_t at = 0; at < next->members->members_len; at++)
                members.insert(next->members->members[at].node);
        } else if (next->kind == CONSORT_MESSAGE) {
            std::cout << next->node << ": " << next.payload() << "\n";
        } else if (next->kind == CONSORT_ENDED_EVENT) {
            ended.insert(next->node);
        }
    }
    must(consort_node_leave(mine.get(), 10000));
}

} // namespace

int main(int argc, char **argv)
{
    arguments arguments;
    parse(&arguments, argc, argv);
    try {
        run(arguments.options);
    } catch (const std::exception &why) {
        std::cerr << why.what() << "\n";
        return 1;
    }
    return 0;
}
